"""Reading of prepared folders: at random, in mixtures, resumed, shared among processes, and damaged."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_folders import FLOW, TEXT, contents, manifest, opened, photos, prepare, same

from starflow_jax.core.config import ComponentConfig, DataConfig
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.batch_order import batch_plan
from starflow_jax.data.pipeline.batches import train_loader
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.data.pipeline.fingerprint import difference, fingerprint
from starflow_jax.data.sources.array_record_files import ArrayRecordFiles
from starflow_jax.data.sources.image_collection import ExampleCaptions
from starflow_jax.data.sources.size_index import by_bucket, by_bucket_of_arrays
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.data.sources.stored_image import StoredImage, unpack


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two prepared folders, of seven and of three pictures."""
    root = tmp_path_factory.mktemp("stored")
    photos(root / "photos")
    assert prepare("folder", root / "photos", root / "seven", "--shards", "3") == 0
    assert prepare("folder", root / "photos" / "dog", root / "three", "--shards", "2") == 0
    return root


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of a prepared folder, to be damaged."""
    for name, data in contents(stored / "seven").items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def mixture(stored):
    parts = tuple(
        ComponentConfig(source="prepared", path=str(stored / name), weight=weight, batch_size=size)
        for name, weight, size in (("seven", 3.0, None), ("three", 1.0, 2))
    )
    return open_source(DataConfig(source="mixture", mixture=parts), "train", flow=FLOW, text=TEXT)


def test_examples_are_read_in_any_order_by_threads_and_after_pickling(stored):
    source = opened(stored / "seven")
    whole = [source[index] for index in range(7)]
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        for index, example in zip(
            [6, 0, 3, 3, 5, 1] * 5, pool.map(again.__getitem__, [6, 0, 3, 3, 5, 1] * 5), strict=True
        ):
            same(example, whole[index])
    with pytest.raises(IndexError):
        source[7]


def test_few_files_are_open_at_a_time(stored):
    shards = manifest(stored / "seven")["splits"]["train"]["shards"]
    paths, counts = [str(stored / "seven" / one["file"]) for one in shards], [one["count"] for one in shards]
    one, many = ArrayRecordFiles(paths, counts, max_open=1), ArrayRecordFiles(paths, counts)
    assert len(one) == 7 and [one[index] for index in (6, 0, 2, 6, 1)] == [many[index] for index in (6, 0, 2, 6, 1)]
    assert len(one._open) == 1 and len(many._open) == 3


def test_a_mixture_of_prepared_folders_resumes_exactly(stored):
    loader = train_loader(mixture(stored), 4, 3)
    batches = list(itertools.islice(loader, 8))
    assert sorted(len(batch["label"]) for batch in batches) == [2, 2, 4, 4, 4, 4, 4, 4]
    resumed = train_loader(mixture(stored), 4, 3, threads=2)
    resumed.set_state(json.loads(json.dumps({"next_index": 5})))
    for batch in batches[5:]:
        same(batch, next(resumed))
    resumed.close()
    parts = [train_loader(mixture(stored), 4, 3, process=(process, 2)) for process in range(2)]
    for batch in batches:
        halves = [next(part) for part in parts]
        same(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})


def test_a_moved_folder_is_the_same_data_and_another_is_not(stored, copy):
    one, moved = opened(stored / "seven", aspect_ratios=("1:1", "2:1")), opened(copy, aspect_ratios=("1:1", "2:1"))
    assert difference(fingerprint(one), fingerprint(moved)) is None
    assert difference(fingerprint(one), fingerprint(opened(stored / "seven"))) is not None
    assert contents_digest(one) == contents_digest(opened(stored / "seven", aspect_ratios=("1:1", "2:1")))
    assert contents_digest(one) != contents_digest(opened(stored / "three", aspect_ratios=("1:1", "2:1")))


def test_sizes_of_arrays_give_the_buckets_of_sizes():
    sizes = np.random.default_rng(0).integers(1, 2000, (300, 2)).astype(np.int32)
    ratios = ("1:1", "16:9", "9:16", "4:1")
    expected = by_bucket(sizes.tolist(), ratios)
    buckets = by_bucket_of_arrays(np.split(sizes, [0, 7, 150]), ratios)
    assert list(buckets) == list(expected) and all(np.array_equal(buckets[name], expected[name]) for name in ratios)
    assert buckets["1:1"].dtype == np.uint32


# What is damaged


def test_a_flipped_bit_makes_one_bad_example(copy):
    shard = copy / "train-00001-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 1
    shard.write_bytes(data)
    source = opened(copy)
    bad = []
    for index in range(7):
        try:
            source[index]
        except BadExample as error:
            bad.append(error.name)
    assert len(bad) == 1 and source[6]["label"] == 1


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "contains no manifest.json: starflow prepare writes one"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "has a manifest that cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "has a manifest that cannot be read: 'format'"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"format": "x"}'),
            "must be 'starflow images 1', got 'x'",
        ),
        (
            lambda folder: (folder / "train-00002-of-00003.array_record").unlink(),
            "00002-of-00003.array_record must have",
        ),
        (lambda folder: (folder / "train-00002-of-00003.array_record").write_bytes(b"x"), "bytes, got 1"),
        (lambda folder: (folder / "train-00002-of-00003.sizes").unlink(), "00003.sizes cannot be read: No such file"),
        (lambda folder: (folder / "train-00002-of-00003.sizes").write_bytes(b"x"), "it has 1 bytes and not 24"),
        (lambda folder: (folder / "train-00002-of-00003.sizes").write_bytes(b"\0" * 24), "a size is below 1"),
    ],
)
def test_damaged_folders_are_refused_in_a_sentence(copy, damage, sentence):
    damage(copy)
    with pytest.raises(ValueError, match=sentence) as error:
        opened(copy, aspect_ratios=("1:1",))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("splits", "train", "shards", 0, "file"), "../x-00000-of-00003.array_record", "must be names in this folder"),
        (("splits", "train", "shards", 0, "count"), -1, "has -1 examples"),
        (("splits", "train", "shards", 0, "count"), 10**15, "do not add up to 7"),
        (("splits", "train", "count"), "seven", "invalid literal"),
        (("splits", "train", "fingerprint"), "x", "its fingerprint is not of 64 digits"),
        (("splits", "train", "captions"), 3, "has a manifest that cannot be read"),
        (("splits",), [], "has a manifest that cannot be read"),
        (("num_classes",), 10**9, "num_classes is 1000000000"),
        (("num_classes",), 5, "it names 2 of 5 classes"),
    ],
)
def test_false_manifests_are_refused_in_a_sentence(copy, path, value, sentence):
    values = manifest(copy)
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=sentence):
        opened(copy)


def test_false_numbers_of_records_and_labels_make_bad_examples(copy):
    values = manifest(copy)
    shards = values["splits"]["train"]["shards"]
    shards[0]["count"], shards[1]["count"] = shards[0]["count"] + 1, shards[1]["count"] - 1
    values["num_classes"], values["classes"] = 1, []
    (copy / "manifest.json").write_text(json.dumps(values))
    source = opened(copy)
    with pytest.raises(BadExample, match="must contain 3 records, got 2"):
        source[0]
    with pytest.raises(BadExample, match="its label is 1"):
        source[6]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"index": "i.json"}, "data.index must be None for source 'prepared'"),
        ({"splits": (("train", "val"),)}, "must have a split val, got train"),
        ({"splits": (("dev", "val"),)}, "splits must be one of 'train', 'test', got 'dev'"),
        ({"splits": (("train", " "),)}, "splits must give a name for 'train', got ' '"),
        ({"splits": (("train", "a"), ("train", "b"))}, "splits must name each of train, test once, got train, train"),
        ({"features": (("image", "x"),)}, "features requires source 'tfds', got source='prepared'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(stored, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(stored / "seven", **fields)


TEXTS = st.text(max_size=20)
CAPTIONS = st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3)
SIDES = st.integers(1, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(
    st.builds(
        StoredImage, st.binary(max_size=30), st.integers(-1, 2**31 - 1), st.tuples(SIDES, SIDES), TEXTS,
        st.builds(ExampleCaptions, CAPTIONS, TEXTS),
    ),
    st.binary(max_size=60),
    st.integers(0, 200),
)  # fmt: skip
def test_records_are_read_as_they_were_written_and_others_are_refused(image, noise, cut):
    record = image.pack()
    assert unpack(record) == image
    for damaged in (noise, record[:cut], record[:cut] + noise):
        try:
            unpack(damaged)
        except ValueError as error:
            assert "\n" not in str(error)


# Orders of many examples


def test_the_order_of_a_thousand_million_examples_takes_no_memory():
    tracemalloc.start()
    count = 10**9
    plan = batch_plan([count, count], [1.0, 2.0], [512, 512], 7, ((0,), 1))
    rows = [plan[index] for index in (0, 1, 10**6)]
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for row in rows:
        examples = np.asarray([example for _, example in row.examples])
        assert len(set(examples.tolist())) == 512 and examples.min() >= 0 and examples.max() < count
        assert 0.4 < examples.mean() / count < 0.6
    assert memory < 10**7, "three batches of 512 rows, and nothing that grows with the number of examples"


def test_a_source_of_too_many_examples_is_refused():
    with pytest.raises(
        ValueError, match=r"must have at most 4294967296 examples, got 4294967297: a mixture joins several"
    ):
        batch_plan([2**32 + 1], [1.0], [4], 0, ((0,), 1))
    assert len(batch_plan([2**32], [1.0], [4], 0, ((0,), 1))[2**31].examples) == 4
