"""Files of pairs: damaged files and wrong arrays are refused in a sentence, most of them before an array is read."""

import dataclasses
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from random_flows import CLASSES, IMAGE
from sweep_runs import TRAIN

from starflow_jax.core.config import DataConfig, ExperimentConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.post_training.post_training_setup import check_base
from starflow_jax.post_training.preference_pairs import read_pairs

CONFIG = ExperimentConfig("pairs", CLASSES, DataConfig(levels=17, label_drop=0.1), TRAIN)
PIXELS = np.zeros((3, 4, 4, 1), np.uint8)


def member(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0))
    return file.getvalue()


def forged(array: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """A member whose header states another shape."""
    file = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue() + array.tobytes()


def write(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"winner": member(np.uint8(1))}, r"must contain winner \['n', 4, 4, 1\], n from 1 to \d+, got \[\]"),
        ({"loser": member(PIXELS[:2])}, r"must contain loser .*, got \[2, 4, 4, 1\]"),
        ({"winner": member(PIXELS.astype(np.float32))}, "must contain winner as integers from 0 to 16, got float32"),
        ({"winner": forged(PIXELS, (10**12, 4, 4, 1))}, r"cannot be read: winner must have the \d+ bytes of uint8"),
        ({"winner": b"\x93NUMPY\x01"}, "cannot be read: "),
        ({"label": member(np.float32([0, 1, 2]))}, "must contain label as 3 integers from -1 to 2, got float32"),
        ({"label": member(np.int32([0, 1, 3]))}, "must contain label from -1 to 2, got 0 to 3"),
        ({"caption": forged(np.zeros(0, "U1"), (3, 0))}, "must contain caption as 3 texts"),
        ({"caption": member(np.full(3, "", "U20000"))}, "must contain caption as 3 texts of at most 10000 characters"),
    ],
)
def test_wrong_arrays_are_refused_in_a_sentence(tmp_path, changed, sentence):
    arrays = {"winner": member(PIXELS), "loser": member(PIXELS), "label": member(np.int32([-1, 0, 2]))}
    read_pairs(write(tmp_path / "good.npz", **arrays), CONFIG)
    with pytest.raises(ValueError, match=f"pairs file .* {sentence}"):
        read_pairs(write(tmp_path / "bad.npz", **(arrays | changed)), CONFIG)


def test_a_small_file_of_a_large_array_is_refused_unread(tmp_path):
    path = write(tmp_path / "bomb.npz", winner=member(np.zeros((3, 64, 32, 1024), np.uint8)), loser=member(PIXELS))
    assert path.stat().st_size < 10**5
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"must contain winner .*, got \[3, 64, 32, 1024\]"):
        read_pairs(path, CONFIG)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("damage", ["data", "method", "cut", "not a zip file"])
def test_damaged_files_are_refused_in_a_sentence(tmp_path, damage):
    path = tmp_path / "pairs.npz"
    noise = np.random.default_rng(0).integers(0, 17, (200, 4, 4, 1), np.uint8)
    content = bytearray(write(path, winner=member(noise), loser=member(noise)).read_bytes())
    if damage == "data":
        content[200:1200] = bytes(1000)
    elif damage == "method":  # of compression, in the local header and in the directory
        for magic, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = content.index(magic) + place
            content[at : at + 2] = b"\x63\x00"
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"text" if damage[0] == "n" else content)
    with pytest.raises(ValueError, match=r"pairs file .* cannot be read: \S"):
        read_pairs(path, CONFIG)


def test_the_conditions_of_pairs_are_those_of_the_run(tmp_path):
    text = TextConfig(tuple(map(str, range(6))))
    flow = dataclasses.replace(IMAGE, channels=1)
    config = ExperimentConfig("captions", flow, DataConfig(levels=17, label_drop=0.1), TRAIN, text=text)
    arrays = {"winner": member(PIXELS), "loser": member(PIXELS)}
    captions = arrays | {"caption": member(np.array(["1", "2", "1"]))}
    assert read_pairs(write(tmp_path / "good.npz", **captions), config).caption == ("1", "2", "1")
    for bad, sentence in (
        (arrays, "must contain caption for a run that reads captions, got winner, loser"),
        (captions | {"label": member(np.int32([-1, 0, -1]))}, "must contain label from -1 to -1, got -1 to 0"),
        (captions | {"caption": member(np.array(["1", "", "1"]))}, "must contain captions that are not empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_pairs(write(tmp_path / "bad.npz", **bad), config)
    asked = PostTrainingExperiment("pairs", TRAIN, 0, method="dpo", pairs="pairs.npz", group_size=2, labels=(-1,))
    check_base(config, dataclasses.replace(asked, labels=()))
    with pytest.raises(ValueError, match="captions must be given for a run that reads them"):
        check_base(config, asked)
