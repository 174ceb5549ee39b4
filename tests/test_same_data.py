"""A run resumes with the data it began with, wherever they are stored, and refuses other data."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from picture_files import encoded, picture, write_photos, write_tar

from starflow_jax.core.config import ComponentConfig, DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.data import ArraySource, Component, Mixture
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint, fingerprint, to_values
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.training import Checkpoints, load_run, train
from starflow_jax.training.checkpoints.parts import read_digests
from starflow_jax.training.checkpoints.same_data import same_everywhere
from starflow_jax.training.checkpoints.workdir import claim_workdir, read_config
from starflow_jax.training.step.train_step import init_state

FLOW = FlowConfig(
    family="tarflow", channels=3, image_size=8, patch_size=4, width=16, num_blocks=1, layers_per_block=1, head_dim=16
)


def config_of(path, **fields):
    data = DataConfig(**({"source": "images", "path": str(path)} | fields))
    train = TrainConfig(steps=4, batch_size=2, lr=1e-2, checkpoint_every=2, log_every=2)
    return ExperimentConfig(name="same", flow=FLOW, data=data, train=train)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Photos, and a run of four updates on them."""
    root = tmp_path_factory.mktemp("same")
    write_photos(root / "photos", {"cat": [(16, 16)] * 6, "dog": [(16, 16)] * 4}, captions=False)
    train(config_of(root / "photos"), root / "run", progress=False)
    return root


@pytest.fixture
def stopped(trained, tmp_path):
    """The photos and the run as it was at update 2."""
    shutil.copytree(trained, tmp_path / "here")
    shutil.rmtree(tmp_path / "here" / "run" / "checkpoints" / "4")
    values = json.loads((tmp_path / "here" / "run" / "config.json").read_text())
    values["data"]["path"] = str(tmp_path / "here" / "photos")
    (tmp_path / "here" / "run" / "config.json").write_text(json.dumps(values))
    return tmp_path / "here"


def one_less(photos):
    (photos / "dog" / "3.png").unlink()


def another_size(photos):
    (photos / "dog" / "3.png").write_bytes(encoded(picture(7, 20, 16)))


def another_name(photos):
    (photos / "dog" / "3.png").rename(photos / "dog" / "4.png")


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (one_less, "9"),
        (another_size, "equally many with other names, sizes"),
        (another_name, "equally many with other names, sizes"),
    ],
)
def test_changed_data_are_refused(stopped, change, now):
    photos = stopped / "photos"
    before = read_config(stopped / "run")
    change(photos)
    for resume in ("latest", "latest-good"):
        with pytest.raises(
            ValueError, match=r"^data.path .*photos contained 10 examples when checkpoint 2 of .*/run was sa"
        ):
            train(config_of(photos), stopped / "run", progress=False, resume=resume)
    with pytest.raises(ValueError, match=f"and contains {now}"):
        train(config_of(photos), stopped / "run", progress=False)
    assert sorted(path.name for path in (stopped / "run" / "checkpoints").iterdir()) == ["2"]
    assert read_config(stopped / "run") == before  # a refused call changes nothing


def test_a_folder_may_move(stopped, trained):
    (stopped / "photos").rename(stopped / "elsewhere")
    (stopped / "elsewhere" / "readme.txt").write_text("no picture")
    train(config_of(stopped / "elsewhere"), stopped / "run", progress=False)
    assert read_config(stopped / "run").data.path == str(stopped / "elsewhere")
    for a, b in zip(*(jax.tree.leaves(load_run(root / "run")[2]) for root in (stopped, trained)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_that_does_not_say_resumes_where_its_data_lay(stopped):
    folder = stopped / "run" / "checkpoints" / "2"
    shutil.rmtree(folder / "data")
    digests = dict(read_digests(folder))
    assert digests.pop("data") is not None
    (folder / "digests" / "metadata").write_text(json.dumps(digests))
    shutil.copytree(stopped / "photos", stopped / "elsewhere")
    with pytest.raises(ValueError, match=r"without a record of their data, so data.path must still be .*photos, got"):
        train(config_of(stopped / "elsewhere"), stopped / "run", progress=False)
    one_less(stopped / "photos")
    assert train(config_of(stopped / "photos"), stopped / "run", progress=False).step == 4


def test_what_was_held_is_checked_as_all_parts_are(stopped):
    """A damaged part does not count as other data: the checkpoint is refused as damaged when restored, or skipped."""
    path = stopped / "run" / "checkpoints" / "2" / "data" / "metadata"
    values = json.loads(path.read_text())
    assert values == [["photos 1:1", 10, values[0][2]]]
    values[0][1] = 9
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"2 is damaged: data does not match its checksum"):
        train(config_of(stopped / "photos"), stopped / "run", progress=False)


def test_sources_of_a_mixture_are_named(tmp_path):
    """Each bucket, in memory or in tar files."""
    images = np.zeros((5, 8, 8, 3), np.uint8)
    arrays = ArraySource("arrays", images, np.arange(5, dtype=np.int32), levels=256, num_classes=5)
    write_tar(tmp_path / "a.tar", [{"png": encoded(picture(k, 16, 16))} for k in range(3)])
    tars = open_source(DataConfig(source="tars", path=str(tmp_path / "a.tar")), "train", flow=FLOW)
    mixture = Mixture("both", (Component(arrays), *tars.components))
    held = fingerprint(mixture)
    assert [one[:2] for one in held] == [("arrays", 5), ("a.tar 1:1", 3)]
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "moved" / "a.tar")
    again = open_source(DataConfig(source="tars", path=str(tmp_path / "moved" / "a.tar")), "train", flow=FLOW)
    assert fingerprint(again) == held[1:]
    relabelled = dataclasses.replace(arrays, labels=arrays.labels[::-1].copy())
    assert fingerprint(relabelled) != held[:1] != fingerprint(arrays.subset(np.arange(4), "arrays"))

    parts = tuple(ComponentConfig(source="npz", path=str(tmp_path / name)) for name in ("p", "q"))
    config = dataclasses.replace(config_of("p"), data=DataConfig(source="mixture", mixture=parts))
    claim_workdir(tmp_path / "run", config)
    with Checkpoints(tmp_path / "run", config, data=held, write=True) as checkpoints:
        checkpoints.save(init_state(config), {"next_index": 0}, wait=True)
    claim_workdir(tmp_path / "run", config, held)
    changed = (held[0], held[1]._replace(examples=2))
    with pytest.raises(
        ValueError, match=r"data.source 'mixture' \(a.tar 1:1\) contained 3 examples when .* and contains 2 now"
    ):
        claim_workdir(tmp_path / "run", config, changed)
    with pytest.raises(
        ValueError, match=r"'mixture' contained 2 sources of 8 examples when .* and contains 1 sources of 5 ex"
    ):
        claim_workdir(tmp_path / "run", config, held[:1])
    moved = dataclasses.replace(config.data, mixture=(parts[0], dataclasses.replace(parts[1], path="r")))
    claim_workdir(tmp_path / "run", dataclasses.replace(config, data=moved), held)
    heavier = dataclasses.replace(config.data, mixture=(parts[0], dataclasses.replace(parts[1], weight=2.0)))
    with pytest.raises(ValueError, match=r"config\.data\.mixture\.weight is 1\.0 in the folder and 2\.0 in this call"):
        claim_workdir(tmp_path / "run", dataclasses.replace(config, data=heavier), held)


def test_processes_must_find_the_same(monkeypatch):
    here = (SourceFingerprint("photos", 10, "a"), SourceFingerprint("clips", 3, "b"))
    assert same_everywhere(here) == here
    for there, sentence in (
        ((here[0], SourceFingerprint("clips", 4, "b")), "clips contained 3 examples on process 0 and 4 on process 1"),
        (
            (SourceFingerprint("photos", 10, "c"), here[1]),
            "photos contained 10 examples on process 0 and equally many with other names",
        ),
        (here[:1], "they contained 2 sources of 13 examples on process 0 and 1 sources of 10 examples on process 1"),
    ):
        texts = [json.dumps(to_values(held)) for held in (here, there)]
        monkeypatch.setattr("starflow_jax.training.checkpoints.same_data.gather_texts", lambda _, texts=texts: texts)
        for own in (here, there):  # refused on both
            with pytest.raises(ValueError, match=f"data must be the same on all processes: {sentence}"):
                same_everywhere(own)
