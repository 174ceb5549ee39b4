"""Data sets of TensorFlow Datasets: their features and splits by any name, from preparation to training.

The data sets are made here, without network and without TensorFlow.
"""

from __future__ import annotations

import io
import json
import shutil
import struct

import numpy as np
import pytest
from picture_files import encoded, picture
from prepared_folders import FLOW, TEXT, contents, manifest, prepare, same
from sklearn.datasets import load_digits

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.opening_notes import class_names, opening_notes
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.data.sources.tfrecord_files import Part, TfRecordFiles

tfds = pytest.importorskip("tensorflow_datasets")
EXPERIMENT = """\
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "name": "tiny",
        "flow": {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 1,
                 "layers_per_block": 1, "head_dim": 16, "num_classes": 10},
        "data": {"source": "prepared", "path": "digits", "splits": (("test", "validation"),)},
        "train": {"steps": 2, "batch_size": 8, "lr": 1e-3, "log_every": 1},
    })
"""


def data_set(name, features, examples, splits=(("train", 0, None),)):
    """Declares a data set, which the library then finds by its name; its examples are in memory."""

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    methods = {
        "__doc__": "A few examples.",
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {split: enumerate(examples[a:b]) for split, a, b in splits},
        "_generate_examples": lambda self: None,  # the base class only wants the name
    }
    return type(name, (tfds.core.GeneratorBasedBuilder,), methods)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The name of a data set of 40 handwritten digits, and the folder that it is prepared in; features as in MNIST."""
    values = load_digits()
    features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    examples = [
        {"image": (values.images[number] * 15).astype(np.uint8)[..., None], "label": int(values.target[number])}
        for number in range(40)
    ]
    examples = [{**one, "image": io.BytesIO(encoded(one["image"][..., 0]))} for one in examples]
    data_set("TinyDigits", features, examples, (("train", 0, 30), ("validation", 30, 40)))
    return tmp_path_factory.mktemp("data_sets")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """The folder of a data set whose features have names of their own."""
    text = tfds.features.Text()
    features = {
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "digit": tfds.features.Scalar(dtype=np.int64),
        "captions": tfds.features.Sequence({"id": tfds.features.Scalar(dtype=np.int64), "text": text}),
        "title": text,
        "source": text,
    }
    examples = [
        {
            "picture": io.BytesIO(encoded(picture(number))),
            "digit": number % 3,
            "captions": [{"id": 1, "text": "a cat"}, {"id": 2, "text": "a dog"}],
            "title": "a",
            "source": "cat",
        }
        for number in range(8)
    ]
    folder = tmp_path_factory.mktemp("captioned")
    builder = data_set("TinyCaptions", features, examples)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def opened(path, split="train", **fields):
    return open_source(DataConfig(path=str(path), **fields), split, flow=FLOW, text=TEXT)


NAMES = (("image", "picture"), ("label", "digit"), ("caption", "captions/text"))


@pytest.mark.slow  # training on prepared records is tested with folders, names of features and splits below
def test_digits_from_preparation_to_training(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.json"
    options = ("--data-dir", str(digits), "--shards", "2", "--json", str(report))
    assert prepare("tfds", "tiny_digits", tmp_path / "digits", *options) == 0
    said = json.loads(report.read_text())
    assert {name: split["examples"] for name, split in said["splits"].items()} == {"train": 30, "validation": 10}
    assert said["num_classes"] == 10 and said["class_names"] == list("0123456789")
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    assert main(["train", "--config", "tiny.py", "--workdir", "run", "--quiet"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["levels"] == 256 and config["data"]["splits"] == [["test", "validation"]]
    # A second preparation finds the data set prepared, in parts and under other names.
    options = ("--data-dir", str(digits), "--splits", "train=train[:80%],test=train[80%:]", "--quiet")
    assert prepare("tfds", "tiny_digits:1.0.0", tmp_path / "parts", *options) == 0
    assert [split["count"] for split in manifest(tmp_path / "parts")["splits"].values()] == [24, 6]
    capsys.readouterr()


def test_features_and_splits_are_named_in_the_configuration(captioned, tmp_path):
    parts = (("train", "train[:75%]"), ("test", "train[75%:]"))
    fields = {"source": "tfds", "dataset": "tiny_captions", "features": NAMES, "splits": parts}
    direct, held_out = opened(captioned, **fields), opened(captioned, "test", **fields)
    assert len(direct) == 6 and len(held_out) == 2 and direct[0]["caption"] in ("a cat", "a dog")
    assert direct[1]["label"] == -1 and opening_notes(direct)[0].startswith(
        "feature 'digit' states no number of classes"
    )
    features = ",".join(f"{name}={feature}" for name, feature in NAMES)
    options = ("--data-dir", str(captioned), "--features", features, "--splits", "train=train[:75%]")
    assert prepare("tfds", "tiny_captions", tmp_path / "out", *options) == 0
    shutil.copytree(captioned, tmp_path / "elsewhere")
    moved = ("--data-dir", str(tmp_path / "elsewhere"), *options[2:])
    assert prepare("tfds", "tiny_captions", tmp_path / "out", *moved) == 0  # complete already
    assert prepare("tfds", "tiny_captions", tmp_path / "moved", *moved) == 0
    assert contents(tmp_path / "moved") == contents(tmp_path / "out")
    stored = opened(tmp_path / "out", source="prepared")
    assert stored.num_classes == 3 and [int(stored[index]["label"]) for index in range(6)] == [0, 1, 2, 0, 1, 2]
    for index in range(6):
        same({**direct[index], "label": stored[index]["label"]}, stored[index])
    assert opening_notes(stored) == [] and class_names(stored) == ()
    kinds = opened(captioned, source="tfds", dataset="tiny_captions", features=NAMES[:1])
    assert set(kinds.components[0].source.collection.captions(0).texts) == {"title", "source"}


def test_records_of_tensorflow_are_read_without_it(captioned, tmp_path):
    """The data set as it is by default, in files of TFRecord: lengths, checksums and records one after another."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    version = captioned / "tiny_captions" / "1.0.0"
    target = tmp_path / "tiny_captions" / "1.0.0"
    target.mkdir(parents=True)
    for path in version.iterdir():
        if "array_record" in path.name:
            records = ArrayRecordDataSource([str(path)])
            framed = (struct.pack("<QI", len(record), 0) + record + b"\0" * 4 for record in records)
            (target / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(framed))
        else:
            (target / path.name).write_text(path.read_text().replace("array_record", "tfrecord"))
    fields = {"source": "tfds", "features": NAMES, "splits": (("train", "train[2:7]"),)}
    expected, read = opened(version, **fields), opened(target, **fields)
    assert len(read) == 5
    for index in (4, 0, 3):
        same(expected[index], read[index])
    (shard,) = (path for path in target.iterdir() if "tfrecord" in path.name)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(BadExample, match="ends inside record 7"):
        opened(target, source="tfds", features=NAMES)[0]
    shard.write_bytes((struct.pack("<QI", 2, 0) + b"ab" + b"\0" * 4) * 7)
    with pytest.raises(ValueError, match="must have 9 records, got 7"):
        TfRecordFiles([Part(str(shard), 4, 5)], bytes)[0]
    shard.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="ends inside record 0"):
        TfRecordFiles([Part(str(shard), 0, 1)], bytes)[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, r"must have an image feature called 'image', got picture \(Image\), digit \(Scalar\)"),
        ({"features": (("image", "title"),)}, "must have an image feature called 'title'"),
        ({"features": (*NAMES[:1], ("label", "title"))}, "must have a whole number called 'title'"),
        ({"features": (*NAMES[:1], ("caption", "captions/id"))}, "must have a text called 'captions/id'"),
        ({"features": (*NAMES[:1], ("caption", "captions/no/such"))}, "must have a text called 'captions/no/such'"),
        ({"features": NAMES, "splits": (("train", "dev"),)}, "must have the split 'dev', got train"),
        ({"features": NAMES, "splits": (("train", "train[90%"),)}, r"must have the split 'train\[90%', got train"),
        (
            {"features": NAMES, "splits": (("train", "train[3:3]"),)},
            r"split 'train\[3:3\]' .* must have examples, got none",
        ),
        ({"features": (("image", ""),)}, "features must give a name for 'image', got ''"),
    ],
)
def test_names_that_a_data_set_lacks_are_refused(captioned, fields, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        opened(captioned, source="tfds", dataset="tiny_captions", **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("no_such_set", (), "data set no_such_set cannot be prepared: Dataset no_such_set not found"),
        ("Bad Name!", (), "data set Bad Name! cannot be prepared: Parsing builder name string Bad Name! failed"),
        ("tiny_captions", (), "must have an image feature called 'image'"),
        ("tiny_captions", ("--features", "image=picture", "--splits", "dev"), "must have the split 'dev', got train"),
    ],
)
def test_data_sets_that_cannot_be_prepared_end_in_a_sentence(captioned, tmp_path, capsys, name, options, sentence):
    assert prepare("tfds", name, tmp_path / "out", "--data-dir", str(captioned), *options) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in message and not (tmp_path / "out").exists()


def test_a_data_set_that_needs_tensorflow_says_so(captioned, tmp_path, capsys, monkeypatch):
    def without(self, **_):
        try:
            raise ModuleNotFoundError("No module named 'tensorflow'")
        except ImportError as error:
            raise RuntimeError("cannot extract") from error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", without)
    assert prepare("tfds", "mnist", tmp_path / "out", "--data-dir", str(tmp_path)) == 2
    message = capsys.readouterr().err
    assert "preparing it needs TensorFlow: pip install 'starflow-jax[prepare]'" in message
