"""Layouts of data as people have them: linked folders, names of splits, members of tars, parquet, IDX and npz files."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from picture_files import encoded, picture, write_tar

from starflow_jax.core.config import DataConfig, FlowConfig, TextConfig
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.caption_account import caption_account
from starflow_jax.data.pipeline.opening_notes import class_names, opening_notes
from starflow_jax.data.sources.reference_images import open_real
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.data.sources.splits import shard_files

PICTURE = encoded(picture(0))
MASK = encoded(picture(1, 8, 8))
FLOW = FlowConfig(
    family="starflow", rope=True, sos=True, channels=3, image_size=16, patch_size=4, width=20, num_blocks=1,
    layers_per_block=1, head_dim=20, text_dim=3, text_length=8,
)  # fmt: skip


def opened(path, source, split="train", **fields):
    config = DataConfig(source=source, path=str(path), **fields)
    return open_source(config, split, flow=FLOW, text=TextConfig(("a", "cat", "dog")))


def collection_of(source):
    return source.components[0].source.collection


def write_pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)


def write_members(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# Folders


def test_linked_class_folders_are_followed_and_loops_end(tmp_path):
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    write_pictures(elsewhere, "0.png", "in/1.png")
    write_pictures(data, "train/real/0.png")
    (elsewhere / "loop").symlink_to(elsewhere)
    (elsewhere / "in" / "up").symlink_to("..")
    for name in ("ant", "bee"):
        (data / "train" / name).symlink_to(elsewhere)
    (data / "train" / "whole").symlink_to(data / "train")
    (data / "train" / "dead.png").symlink_to("nowhere.png")
    (data / "train" / "cow").symlink_to("nowhere")
    source = opened(data, "images")
    folder = collection_of(source)
    assert folder.files == ("ant/0.png", "ant/in/1.png", "bee/0.png", "bee/in/1.png", "real/0.png")
    assert class_names(source) == ("ant", "bee", "real")
    notes = opening_notes(source)
    assert (
        "5 linked folders lead to a folder that is read already" in notes[0] and "2 links lead to no file" in notes[1]
    )


def test_folders_linked_many_times_over_are_read_once_in_a_class(tmp_path):
    """Each of twenty folders links the next one twice: a million paths lead to the last."""
    for number in range(20):
        (tmp_path / "d" / str(number)).mkdir(parents=True)
        for name in ("x", "y"):
            (tmp_path / "d" / str(number) / name).symlink_to(tmp_path / "d" / str(number + 1))
    write_pictures(tmp_path, "d/20/0.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "d" / "0")
    assert len(opened(tmp_path / "data", "images")) == 1


def test_a_link_inside_a_folder_takes_no_file_from_it(tmp_path):
    write_pictures(tmp_path, "cat/b/0.png")
    (tmp_path / "cat" / "a").symlink_to(tmp_path / "cat" / "b")
    assert collection_of(opened(tmp_path, "images")).files == ("cat/b/0.png",)


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("train", "valid"), ("TRAIN", "Validation")])
def test_names_of_splits_in_any_case(tmp_path, train, test):
    write_pictures(tmp_path, f"{train}/cat/0.png", f"{train}/dog/0.png", f"{test}/dog/0.png", f"{test}/elk/1.png")
    assert class_names(opened(tmp_path, "images")) == ("cat", "dog")
    held_out = opened(tmp_path, "images", "test")
    assert [int(held_out[index]["label"]) for index in range(2)] == [1, -1]
    assert opening_notes(held_out) == ["1 files are of classes that the training split lacks, and have none: elk"]


def test_a_test_folder_beside_unsorted_training_images_is_named(tmp_path):
    write_pictures(tmp_path, "cat/0.png", "Valid/cat/0.png")
    with pytest.raises(ValueError, match=r"must contain a folder train .* since it contains a folder Valid"):
        opened(tmp_path, "images")


def test_shards_of_splits(tmp_path):
    for name in ("Train-0.tar", "validation-0.tar", "val-1.tar", ".hidden.tar"):
        write_tar(tmp_path / name, [{"png": PICTURE}])
    assert [file.name for file in shard_files(str(tmp_path), "train", ".tar")] == ["Train-0.tar"]
    assert [file.name for file in shard_files(str(tmp_path), "test", ".tar")] == ["val-1.tar", "validation-0.tar"]
    os.mkfifo(tmp_path / "train-1.tar")  # nobody writes to it: opening it would wait for ever
    assert [file.name for file in shard_files(str(tmp_path), "train", ".tar")] == ["Train-0.tar"]
    assert shard_files(str(tmp_path / "train-1.tar"), "train", ".tar") == []
    write_tar(tmp_path / "test.tar", [{"png": PICTURE}])
    assert [file.name for file in shard_files(str(tmp_path), "test", ".tar")] == ["test.tar"]


def test_a_named_pipe_beside_a_picture_is_not_waited_for(tmp_path):
    write_pictures(tmp_path, "0.png")
    os.mkfifo(tmp_path / "0.txt")
    with pytest.raises(BadExample, match="not a regular file"):
        collection_of(opened(tmp_path, "images")).captions(0)


# Tars


def test_the_picture_of_a_key_is_the_one_with_a_single_suffix(tmp_path):
    write_members(
        tmp_path / "a.tar", [("x.seg.png", MASK), ("x.jpg", PICTURE), ("y.seg.png", MASK), ("y.jpg", PICTURE)]
    )
    source = opened(tmp_path, "tars")
    assert [entry.image.ending for entry in collection_of(source).entries] == [".jpg", ".jpg"]
    assert opening_notes(source) == ["2 images share the key of another, which is read, and are left aside: 2 .seg.png"]


def test_keys_with_several_dots_are_counted_and_can_end_at_the_last(tmp_path):
    write_members(
        tmp_path / "a.tar", [("img_22.05.jpg", PICTURE), ("img_22.05.txt", b"a cat"), ("img_22.10.jpg", MASK)]
    )
    source = opened(tmp_path, "tars")
    assert len(source) == 1
    assert (
        "1 keys contain several images whose names differ after the first dot, such as img_22"
        in opening_notes(source)[0]
    )
    source = opened(tmp_path, "tars", options=(("keys", "last dot"),))
    assert [entry.key for entry in collection_of(source).entries] == ["img_22.05", "img_22.10"]
    assert source[0]["caption"] == "a cat" and source[1]["caption"] == "" and opening_notes(source) == []
    with pytest.raises(ValueError, match=r"keys of data\.options must be one of 'first dot', 'last dot', got 'dots'"):
        opened(tmp_path, "tars", options=(("keys", "dots"),))


def test_repeated_members_and_labels_without_a_number_are_counted(tmp_path):
    write_members(tmp_path / "a.tar", [("0.png", PICTURE), ("0.png", MASK), ("0.cls", b"cat"), ("1.png", PICTURE)])
    source = opened(tmp_path, "tars")
    notes = " ".join(opening_notes(source))
    assert len(source) == 2 and collection_of(source).entries[0].image.size == len(PICTURE)
    assert "1 members repeat a name of their tar, such as 0.png" in notes and "1 .cls members contain no class" in notes


def test_compressed_tars_are_refused_as_such(tmp_path):
    write_tar(tmp_path / "plain.tar", [{"png": PICTURE}])
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "a.tar").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar must not be compressed, .* got gzip: unpack it first"):
        opened(packed, "tars")
    (packed / "a.tar").rename(packed / "a.tar.gz")
    with pytest.raises(
        ValueError, match=r"no \.tar file for the train split, but 1 compressed ones such as a\.tar\.gz"
    ):
        opened(packed, "tars")


def test_shards_of_the_test_split_that_are_trained_on_are_named(tmp_path):
    for name in ("0.tar", "test-0.tar"):
        write_tar(tmp_path / name, [{"png": PICTURE}])
    assert opening_notes(opened(tmp_path, "tars")) == [
        "1 shards called after the test split, such as test-0.tar, are read for training, since none is called train"
    ]
    assert opening_notes(opened(tmp_path, "tars", "test")) == []
    (tmp_path / "0.tar").rename(tmp_path / "train-0.tar")
    assert opening_notes(opened(tmp_path, "tars")) == []


# Parquet


@pytest.fixture
def table(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(5)]
    images[4] = {"bytes": None, "path": "not stored.png"}
    columns = {"image": images, "text": ["a cat", None, "a dog", "", "x"], "label": [1, 0, 1, -1, 0]}

    def write(name, *, names=None, rows=2, **changes):
        written = arrow.table({**columns, **changes})
        if names is not None:
            features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            written = written.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(written, tmp_path / name, row_group_size=rows)

    return write


def test_parquet_shards(tmp_path, table):
    table("data/train-00000-of-00002.parquet", names=["cat", "dog"])
    table("data/train-00001-of-00002.parquet", names=["cat", "dog"], rows=5)
    table("data/test-00000-of-00001.parquet", names=["cat", "dog"])
    source = opened(tmp_path / "data", "parquet")
    rows = collection_of(source)
    assert len(source) == 10 and source.num_classes == 2 and class_names(source) == ("cat", "dog")
    assert len(opened(tmp_path / "data", "parquet", "test")) == 5
    np.testing.assert_array_equal(source[2]["image"], source[7]["image"])
    assert [int(source[index]["label"]) for index in (0, 1, 3, 8)] == [1, 0, -1, -1]
    assert source[7]["caption"] == "a dog" and rows.key(7).endswith("train-00001-of-00002.parquet[2]")
    assert rows.relative_key(7) == "train-00001-of-00002.parquet[2]"
    assert (
        caption_account(source).sentence().startswith("captions: 6 of 10 examples have one (6 in a parquet column); 4")
    )
    with pytest.raises(BadExample, match="its image is not stored in the file"):
        source[4]
    identities = {rows.identity(index) for index in range(10)}
    assert len(identities) == 10
    assert pickle.loads(pickle.dumps(source))[2]["caption"] == "a dog"


def test_parquet_of_other_columns(tmp_path, table):
    table("train.parquet", image=[1, 2, 3, 4, 5], jpg=[encoded(picture(0))] * 5, label=["cat"] * 5)
    with pytest.raises(BadExample, match="not stored in the file"):
        opened(tmp_path / "train.parquet", "parquet")[0]
    source = opened(tmp_path / "train.parquet", "parquet", options=(("image", "jpg"),))
    assert source[0]["image"].shape == (16, 16, 3) and source[0]["label"] == -1
    assert opening_notes(source) == ["column 'label' contains no numbers and is not read"]
    with pytest.raises(ValueError, match=r"must have a column 'picture' of images, got image, text, label, jpg"):
        opened(tmp_path / "train.parquet", "parquet", options=(("image", "picture"),))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read"):
        opened(tmp_path / "train.parquet", "parquet")
    with pytest.raises(ValueError, match=r"contains no \.parquet file for the test split"):
        opened(tmp_path, "parquet", "test")


# IDX


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
    labels = np.asarray([3, 0, 1, 2, 2], np.uint8)
    for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
        for split, part in (("train", array), ("t10k", array[:2])):
            data = idx(part)
            name = f"{split}-{stem}-ubyte{'.gz' if packed else ''}"
            (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    source = open_source(DataConfig(source="idx", path=str(tmp_path)), "train")
    np.testing.assert_array_equal(source.images[..., 0], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert (source.levels, source.num_classes) == (256, 4)
    assert len(open_source(DataConfig(source="idx", path=str(tmp_path)), "test")) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "cannot be read"),
        (b"\x89PNG" * 9, "is not of the IDX format"),
        (
            struct.pack(">HBBI", 0, 13, 1, 4) + bytes(16),
            r"must contain unsigned bytes \(type 8\), got numbers of type 13",
        ),
        (idx(np.full((3, 4, 4), 200, np.uint8))[:-1], r"must contain the 48 values of its shape \[3, 4, 4\], got 47"),
        (idx(np.full((3, 4, 4), 200, np.uint8)) + b"x", "got more"),
        (struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 2**31), "must contain at most 8589934592 values"),
        (gzip.compress(idx(np.full((3, 4, 4), 200, np.uint8)))[:-9], "cannot be read|must contain the 48"),
        (idx(np.full((2, 4, 4), 200, np.uint8)), r"must contain 2 labels, one for each image, got \[3\]"),
        (idx(np.full((3, 4, 4), 16, np.uint8)), r"set data\.levels \(17 or 256\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_idx_files_are_refused_in_a_sentence(tmp_path, data, sentence):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match=sentence):
        open_source(DataConfig(source="idx", path=str(tmp_path)), "train")


def test_idx_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="such as train-images-idx3-ubyte, got none"):
        open_source(DataConfig(source="idx", path=str(tmp_path)), "train")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.full((3, 4, 4), 200, np.uint8)))
    with pytest.raises(ValueError, match="must contain train-labels-idx1-ubyte beside train-images-idx3-ubyte"):
        open_source(DataConfig(source="idx", path=str(tmp_path)), "train")


# Arrays


DARK = np.random.default_rng(0).integers(0, 17, (5, 4, 4)).astype(np.uint8)
BRIGHT = np.full((5, 4, 4, 3), 255, np.uint8)


def npz(path, split="train", **fields):
    return open_source(DataConfig(source="npz", path=str(path), **fields), split)


def test_images_of_few_levels_must_state_them(tmp_path):
    np.savez(tmp_path / "train.npz", image=DARK, label=np.arange(5)[:, None])
    with pytest.raises(ValueError, match=r"from 0 to 16 and does not say .* set data\.levels \(17 or 256\)"):
        npz(tmp_path)
    source = npz(tmp_path, levels=17)
    assert source.levels == 17 and source.images.shape == (5, 4, 4, 1) and source.labels.tolist() == [0, 1, 2, 3, 4]
    assert npz(tmp_path, levels=256).levels == 256
    with pytest.raises(ValueError, match="must contain values below its 12 levels, got 16"):
        npz(tmp_path, levels=12)
    np.savez(tmp_path / "train.npz", image=DARK, label=np.arange(5), levels=17)
    assert npz(tmp_path).levels == 17
    with pytest.raises(ValueError, match=r"data\.levels must be the 17 levels of .*, got 256"):
        npz(tmp_path, levels=256)


def test_data_of_other_levels_than_a_run_recorded_are_refused(tmp_path):
    np.savez(tmp_path / "test.npz", image=BRIGHT, label=np.arange(5))
    with pytest.raises(ValueError, match="must contain values below its 17 levels, got 255"):
        npz(tmp_path, "test", levels=17)  # as in the configuration of a run that was trained on 17 levels
    with pytest.raises(ValueError, match=r"data\.levels must be None or the 17 levels of digits-train, got 256"):
        open_source(DataConfig(levels=256), "train")


def test_one_file_may_hold_both_splits(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=BRIGHT, y_train=np.arange(5), x_test=BRIGHT[:2], y_test=np.arange(2))
    assert [len(npz(tmp_path / "mnist.npz", split)) for split in ("train", "test")] == [5, 2]
    np.savez(tmp_path / "med.npz", train_images=BRIGHT, train_labels=np.arange(5)[:, None], val_images=BRIGHT[:3],
             val_labels=np.arange(3)[:, None])  # fmt: skip
    assert [len(npz(tmp_path / "med.npz", split)) for split in ("train", "test")] == [5, 3]
    np.savez(tmp_path / "one.npz", image=BRIGHT, label=np.arange(5))
    assert len(npz(tmp_path / "one.npz")) == 5
    with pytest.raises(ValueError, match=r"must contain the test split as x_test and y_test, or path be a folder with"):
        npz(tmp_path / "one.npz", "test")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"image": BRIGHT / 255, "label": np.arange(5)}, r"got image float64 \[5, 4, 4, 3\] and label int64 \[5\]"),
        ({"image": BRIGHT, "label": np.arange(4)}, r"got image uint8 \[5, 4, 4, 3\] and label int64 \[4\]"),
        ({"image": BRIGHT, "label": np.zeros(5)}, r"label float64 \[5\]"),
        ({"image": BRIGHT}, r"and as many labels, integer \[n\], got image uint8 \[5, 4, 4, 3\] and no label"),
        ({"data": BRIGHT, "label": np.arange(5)}, "got the arrays data, label"),
        ({"image": np.asarray([{}], object), "label": np.arange(1)}, "cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_other_arrays_are_refused_with_their_shapes(tmp_path, arrays, sentence):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=sentence) as error:
        npz(tmp_path)
    assert "\n" not in str(error.value)


def test_images_to_compare_with_have_levels_too(tmp_path):
    np.savez(tmp_path / "real.npz", image=DARK[..., None])
    with pytest.raises(ValueError, match=r"store `levels` in an .npz file"):
        open_real(tmp_path / "real.npz", (4, 4), 1)
    np.savez(tmp_path / "real.npz", image=DARK[..., None], levels=17)
    assert open_real(tmp_path / "real.npz", (4, 4), 1).levels == 17
