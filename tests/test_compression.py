"""Files of a tiny flow: they decode, are as long as the likelihood says, and are refused where they are foreign."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, random_flow
from sweep_runs import params_of, write_run

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.compression import environment, flow_coder, image_codec
from starflow_jax.compression.environment import Environment
from starflow_jax.compression.file_format import MOST_IMAGES, group_sizes, read_file, write_file
from starflow_jax.compression.flow_coder import FlowCoder, Resolution
from starflow_jax.compression.image_codec import Decoder
from starflow_jax.compression.lifting import LiftedBasis
from starflow_jax.compression.noise_code import NoiseCode
from starflow_jax.compression.pixel_grid import PixelGrid
from starflow_jax.compression.rans import AnsStack
from starflow_jax.core.config import DataConfig, load_config
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.media import write_png

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
DIGITS = EXPERIMENTS / "digits.py"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(17, size=(6, 4, 4, 1)).astype(np.uint8)
NAMES = [f"number {index}.png" for index in range(6)]


def run_of(flow_config, params=None, experiment=DIGITS, **data) -> sf.Run:
    config = load_config(f"{experiment}:tiny")
    values = {"source": "npz", "path": "images.npz", "levels": 17, **data}
    config = dataclasses.replace(config, flow=flow_config, data=DataConfig(**values))
    return sf.Run(Path("run"), config, params_of(random_flow(flow_config)) if params is None else params, 0)


@pytest.fixture(scope="module")
def run():
    return run_of(CLASSES)


@pytest.fixture(scope="module")
def data(run):
    return sf.compress(run, IMAGES, [0, 1, 2, 0, 1, 2], names=NAMES, batch_size=2)


def test_images_names_and_classes_come_back(run, data):
    decoder = Decoder(run, data)
    np.testing.assert_array_equal(decoder.all(), IMAGES)
    assert decoder.names == tuple(NAMES) and decoder.labels.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(sf.decompress(run, data), IMAGES)


TOKENS = dataclasses.replace(
    CLASSES, num_classes=0, token_classes=3, look_ahead=True, default_classes=(0, 2, -1, 1),
    orders=((2, 0, 3, 1), ()), norm="adaptive",
)  # fmt: skip
SHARED = dataclasses.replace(CLASSES, layers_per_block=2, shared_layers=1, orders=((2, 0, 3, 1), (1, 3, 0, 2)))


@pytest.mark.parametrize(
    ("flow_config", "gain", "resolution", "within"),
    [
        (CLASSES, 1.0, Resolution(4, 8), 18.0),
        # Larger weights and finer grids: a flow without the shared layers, or in other orders, is 6 bits away or more.
        (SHARED, 3.0, Resolution(8, 14), 4.0),
        # Without the default classes, or with those of other tokens, it is 2.3 bits away or more.
        pytest.param(TOKENS, 3.0, Resolution(8, 14), 1.5, marks=pytest.mark.slow),
    ],
    ids=["plain", "shared layers and given orders", "default classes of tokens"],
)
def test_the_length_is_the_likelihood_and_little_more(flow_config, gain, resolution, within):
    labels, params = np.asarray([0, 2, 1, 1, 0, 2], np.int32), params_of(random_flow(flow_config))
    labels = None if flow_config.token_classes else labels
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * (gain if "proj_out" in str(path) else 4 if re.search("token_embed|next_embed", str(path)) else 1)
        ),
        params,
    )
    model = run_of(flow_config, params)
    coder, stack = FlowCoder(flow_config, params, 17, None, 2, resolution), AnsStack()
    groups = [slice(first, first + 2) for first in (0, 2, 4)]
    conditions = [None if labels is None else labels[group] for group in groups]
    pairs = list(zip(groups, conditions, strict=True))
    points = np.concatenate([coder.push_group(stack, IMAGES[group], cond) for group, cond in pairs])
    log_p = sf.log_prob(model, points, labels)
    exact = -log_p.sum() / np.log(2) + points.size * np.log2(17 / 2)
    assert stack.bits - 41 - stack.initial_bits == pytest.approx(exact, abs=within)
    for group, cond in reversed(pairs):
        np.testing.assert_array_equal(next(coder.pop_group(stack, 2, cond)), IMAGES[group])


def test_coarser_grids_of_the_first_groups_save_initial_bits(run, monkeypatch):
    streams = [read_file(sf.compress(run, IMAGES[:count]))[1] for count in (1, 6)]
    monkeypatch.setattr(flow_coder, "_COARSER", ())
    finer = [read_file(sf.compress(run, IMAGES[:count]))[1] for count in (1, 6)]
    # 3 bits of each pixel of the first image; what its rounding costs is little beside them.
    saved = [8 * (len(longer) - len(shorter)) for shorter, longer in zip(streams, finer, strict=True)]
    assert min(saved) > 2 * IMAGES[0].size, saved


def test_the_likeliest_class_is_taken(run):
    decoder = Decoder(run, sf.compress(run, IMAGES, batch_size=2))
    images = decoder.all()
    scores = [sf.log_prob(run, (images + 0.5) * np.float32(2 / 17) - 1, [label] * 6) for label in range(3)]
    np.testing.assert_array_equal(decoder.labels, np.argmax(scores, axis=0))


def test_damaged_files_are_refused_before_anything_is_computed(run, data, monkeypatch):
    monkeypatch.setattr(image_codec, "GroupCoders", None)
    rng = np.random.default_rng(1)
    for index in range(100):
        place, damaged = int(rng.integers(len(data))), bytearray(data)
        if index % 2:
            damaged[place] ^= 1 << int(rng.integers(8))
        else:
            del damaged[place:]
        with pytest.raises(ValueError, match=r"^it is (damaged|not a file)|^its format has version"):
            Decoder(run, bytes(damaged))
    with pytest.raises(ValueError, match=r"^it is damaged"):
        Decoder(run, data + b"x")


def test_foreign_files_are_refused(run, data, monkeypatch):
    other = run_of(CLASSES, params_of(random_flow(CLASSES, seed=1)))
    with pytest.raises(ValueError, match=r"^it was made by another model$"):
        Decoder(other, data)
    here = Environment.here()
    for change, words in (
        ({"jax": "0.1"}, "it was made by JAX .*, and here it is 0.1"),
        ({"jaxlib": "0.1"}, "it was made by jaxlib"),
        ({"package": "9"}, "it was made by starflow_jax"),
        ({"device": "TPU v9"}, "it was made by device cpu, and here it is TPU v9"),
    ):
        monkeypatch.setattr(Environment, "here", lambda change=change: dataclasses.replace(here, **change))
        with pytest.raises(ValueError, match=words):
            Decoder(run, data)
    with pytest.raises(ValueError, match="it was made by device"):  # the version is named, not the model
        Decoder(other, data)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"rows": 4096}, "rows must be the size of the largest group of 6, got 4096"),
        ({"rows": 4097, "count": 2**20}, "rows must be from 1 to 4096, got 4097"),
        ({"count": MOST_IMAGES + 1}, f"count must be from 1 to {MOST_IMAGES}"),
        ({"count": MOST_IMAGES, "height": 2**14}, "it must have at most 4294967296 pixels"),
        ({"pixel_bits": 9}, "pixel_bits must be from 0 to 8, got 9"),
    ],
)
def test_sizes_that_would_exhaust_memory_are_refused(data, sizes, message):
    header, stream = read_file(data)
    with pytest.raises(ValueError, match=f"^it is damaged: {message}"):
        read_file(write_file(dataclasses.replace(header, **sizes), stream))


def test_a_stream_of_too_few_words_ends_the_decoding(run, data):
    header, stream = read_file(data)
    decoder = Decoder(run, write_file(dataclasses.replace(header, count=2**20), stream[:21]))
    with pytest.raises(ValueError, match="the coded stream ends too early: it is damaged"):
        for _ in decoder.parts():
            pass


def test_names_that_do_not_fit_are_refused():
    """Names lie below the images in the stream, so they are compared when all images are decoded."""
    for words in (*(image_codec._name_words(names) for names in (NAMES[:2], [1] * 6)), [0x1234, 0x5678]):
        with pytest.raises(ValueError, match="it is damaged: its names are not one for each image"):
            image_codec._names(words, 6)
    assert image_codec._names(image_codec._name_words(NAMES), 6) == tuple(NAMES)


def test_other_arithmetic_is_refused(run, data):
    header, stream = read_file(data)
    probe = bytes([header.probe[0] ^ 1, *header.probe[1:]])
    with pytest.raises(ValueError, match="whose arithmetic differs"):
        Decoder(run, write_file(dataclasses.replace(header, probe=probe), stream))
    changed = Decoder(run, write_file(dataclasses.replace(header, pixels=header.pixels ^ 1), stream))
    with pytest.raises(ValueError, match="could not be restored"):
        changed.all()


def test_a_parameter_changes_the_fingerprint(run):
    changed = jax.tree.map(jnp.asarray, run.params)
    leaf = changed["blocks"]["1"]["proj_in"]
    name = next(iter(leaf))
    changed["blocks"]["1"]["proj_in"] = {**leaf, name: leaf[name].at[(0,) * leaf[name].ndim].multiply(1.0000001)}
    before, after = (environment.fingerprint(run.config.flow, params) for params in (run.params, changed))
    assert before != after


def test_a_file_that_does_not_decode_is_never_returned(run, monkeypatch):
    monkeypatch.setattr(image_codec.Decoder, "all", lambda self: np.zeros_like(IMAGES))
    with pytest.raises(ValueError, match="do not repeat their results"):
        sf.compress(run, IMAGES, None, batch_size=2)


@pytest.mark.parametrize(
    ("images", "cond", "message"),
    [
        (IMAGES[:, :2], None, r"images must be integers \[n, 4, 4, 1\], got shape"),
        (IMAGES / 2, None, "images must be integers .*, got float64"),
        (IMAGES + 1, None, "images must have the 17 levels of the model, 0 to 16, got 17"),
        (IMAGES, [0], "cond must be 6 integers"),
        (IMAGES, [3] * 6, "cond must be 0 to 2, got 3"),
        (IMAGES, "best", 'cond must be labels, "auto" or None'),
    ],
)
def test_wrong_arguments_are_refused(run, images, cond, message):
    images = np.where(IMAGES == 0, 17, IMAGES) if images.dtype == np.uint8 and images.max() == 17 else images
    with pytest.raises(ValueError, match=message):
        sf.compress(run, images, cond)


def test_models_that_cannot_code_are_refused(run):
    latents = run_of(CLASSES, run.params, source="latents", noise="gaussian", noise_std=0.1, levels=None)
    with pytest.raises(ValueError, match="the model must be of pixels, got one of latents"):
        sf.compress(latents, IMAGES)
    vectors = run_of(CLASSES, run.params, source="two_moons", path=None, noise="none", levels=None)
    with pytest.raises(ValueError, match="the model must be of pixels, got one of vectors"):
        sf.compress(vectors, IMAGES)
    clips = load_config(str(EXPERIMENTS / "moving_digits.py") + ":tiny")
    flow_config = dataclasses.replace(clips.flow, temporal_causal=False, shallow_local=False)
    backwards = sf.Run(Path("run"), dataclasses.replace(clips, flow=flow_config), run.params, 0)
    with pytest.raises(ValueError, match=r"must be causal in time \(flow.temporal_causal\)"):
        sf.compress(backwards, IMAGES[None])


def test_a_mesh_is_refused(run, monkeypatch):
    monkeypatch.setattr(image_codec, "tree_layout", lambda params: object())
    with pytest.raises(ValueError, match="the model must be on one device, got a mesh"):
        sf.compress(run, IMAGES)


def test_groups_cover_all_images_and_begin_small():
    for count, rows in ((1, 64), (7, 2), (360, 64), (1000, 8)):
        sizes = group_sizes(count, rows)
        assert sum(sizes) == count and max(sizes) <= rows and sizes[0] == 1


@pytest.mark.slow
def test_commands(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", CLASSES, run.config.data, {4: run.params})
    for name, image in zip(NAMES, IMAGES, strict=True):
        write_png(tmp_path / "images" / name, image)
    assert main(["compress", "--workdir", "run", "images", "--out", "all.sfz", "--batch", "2", "--class", "1"]) == 0
    assert main(["decompress", "--workdir", "run", "all.sfz", "--out", "restored"]) == 0
    for name in NAMES:
        assert (tmp_path / "images" / name).read_bytes() == (tmp_path / "restored" / name).read_bytes()
    assert main(["decompress", "--workdir", "run", "all.sfz", "--out", "all.npz"]) == 0
    with np.load(tmp_path / "all.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], IMAGES)
        assert arrays["levels"] == 17 and arrays["label"].tolist() == [1] * 6
    write_png(tmp_path / "colour.png", np.zeros((4, 4, 3), np.uint8))
    assert main(["compress", "--workdir", "run", "colour.png", "--out", "x.sfz"]) == 2
    assert "its pixels are RGB, and those of the model L" in capsys.readouterr().err
    assert not (tmp_path / "x.sfz").exists()


def test_the_command_refuses_a_damaged_file_before_it_reads_the_run(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cut.sfz").write_bytes(data[:-1])
    assert main(["decompress", "--workdir", "run", "cut.sfz", "--out", "cut"]) == 2
    assert "cut.sfz cannot be decompressed: it is damaged" in capsys.readouterr().err
    assert not Path("cut").exists()


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False], ids=["frame-local", "global"])
def test_clips_come_back_frame_by_frame(local):
    flow_config = dataclasses.replace(VIDEO, shallow_local=local)
    clips = np.random.default_rng(0).integers(17, size=(3, 3, 4, 4, 2))
    cond = np.random.default_rng(1).normal(size=(3, 3, 6)).astype(np.float32)
    coder = FlowCoder(flow_config, params_of(random_flow(flow_config)), 17, 3, 4, Resolution(2, 8))
    stack = AnsStack([3])
    coder.push_group(stack, clips, cond)
    stack, frames = AnsStack.from_bytes(stack.to_bytes()), []
    for frame in coder.pop_group(stack, 3, cond):
        frames.append(frame)
        np.testing.assert_array_equal(frame, clips[:, len(frames) - 1])
    assert stack.restored([3])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow_config",
    [
        dataclasses.replace(CLASSES, pixel_map=PixelMapConfig(levels=17, normal_cells=((0, 4.0),), basis="cosine")),
        dataclasses.replace(CLASSES, pixel_map=PixelMapConfig(levels=17, kind="logit")),
        dataclasses.replace(CLASSES, num_classes=0, layers_per_block=(1, 0), noise_levels=(0.02, 0.5)),
        dataclasses.replace(IMAGE, text_dim=0, text_length=0, cond_top_only=False, dtype="bfloat16"),
    ],
    ids=["normal cells", "logit", "noise levels and an identity block", "start tokens, bfloat16"],
)
def test_every_kind_of_flow_is_lossless(flow_config):
    shape = (5, *flow_config.image_shape, flow_config.channels)
    images = np.random.default_rng(0).integers(17, size=shape)
    model = run_of(flow_config, **({"noise": "gaussian", "noise_std": 0.5} if flow_config.noise_levels else {}))
    np.testing.assert_array_equal(sf.decompress(model, sf.compress(model, images, batch_size=2)), images)


@pytest.mark.slow
def test_a_kill_before_the_last_move_changes_no_file(run, data, tmp_path):
    """Each command is killed when all has been written under a temporary name and nothing has its own name yet."""
    write_run(tmp_path / "run", CLASSES, run.config.data, {4: run.params})
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "images.sfz").write_bytes(data)
    (tmp_path / "old.sfz").write_bytes(b"an older file")
    program = textwrap.dedent("""
        import os, signal, sys
        from starflow_jax.cli.dispatch import main
        from starflow_jax.core import atomic_writing
        move_over = atomic_writing.move_over

        def kill(source, target):
            if target.name == sys.argv[-1]:
                os.kill(os.getpid(), signal.SIGKILL)
            move_over(source, target)

        atomic_writing.move_over = kill
        main(sys.argv[1:])
    """)
    for command, source, out in (
        ("compress", "images.npy", "old.sfz"),
        ("compress", "images.npy", "new.sfz"),
        ("decompress", "images.sfz", "new"),
    ):
        arguments = [command, "--workdir", "run", source, "--out", out]
        ended = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, check=False)
        assert ended.returncode == -signal.SIGKILL
        (temporary,) = tmp_path.glob(f".{out.removesuffix('.sfz')}.*")
        if command == "compress":
            assert read_file(temporary.read_bytes())[0].count == len(IMAGES)
            temporary.unlink()
        else:
            assert len(list(temporary.iterdir())) == len(IMAGES)
    assert (tmp_path / "old.sfz").read_bytes() == b"an older file"
    assert not (tmp_path / "new.sfz").exists() and not (tmp_path / "new").exists()


def test_decompress_refuses_one_name_for_both_results(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["decompress", "--workdir", "run", "x.sfz", "--out", "a.npz", "--json", "a.npz"]) == 2
    assert "--json must be another file than --out, got 'a.npz' for both" in capsys.readouterr().err


def test_the_probe_covers_the_grids_and_the_basis():
    basis = LiftedBasis(((0, 1, 0.5),), np.asarray([1, -1]))
    pixels, noise = PixelGrid(17, 2), NoiseCode(6)
    coder = SimpleNamespace(pixels=pixels, noise=noise, basis=basis, grids=[pixels.grid], blocks=lambda cond: [])
    probes = {environment.probe(coder, None)}
    for change in (
        {"basis": None},
        {"basis": dataclasses.replace(basis, rotations=((0, 1, np.nextafter(0.5, 1.0).item()),))},
        {"basis": dataclasses.replace(basis, signs=np.asarray([1, 1]))},
        {"grids": [dataclasses.replace(pixels.grid, origin=np.asarray([-1.5]))]},
    ):
        probes.add(environment.probe(SimpleNamespace(**{**vars(coder), **change}), None))
    assert len(probes) == 5
