"""Captions, tables and arrays as people have them that would be misread without a word."""

import numpy as np
import pytest
from test_file_layouts import PICTURE, collection_of, opened

from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.pipeline.opening_notes import opening_notes
from starflow_jax.data.sources.npz import read_images


def captions_of(folder, files):
    (folder / "0.png").write_bytes(PICTURE)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    source = opened(folder, "images")
    return collection_of(source).captions(0).texts.get("caption", ()), opening_notes(source)


def test_utf_16_without_a_mark_is_no_caption(tmp_path):
    """The zeros between the letters are valid UTF-8."""
    with pytest.raises(BadExample, match=r"its caption file is not UTF-8 \(a zero at byte 1\)"):
        captions_of(tmp_path, {"0.txt": "a cat".encode("utf-16-le")})


@pytest.mark.parametrize(
    "table",
    [
        "file_name;text\n0.png;a cat, a dog\n",
        "file_name\ttext\n0.png\ta cat, a dog\n",
        'File_Name, Text\r\n0.png,"a cat, a dog"\r\n',
        'file_name,text\n0.png,"a cat, a dog"\n',
    ],
    ids=["semicolons", "tabs", "capitals and spaces", "commas"],
)
def test_tables_of_spreadsheets(tmp_path, table):
    assert captions_of(tmp_path, {"metadata.csv": table}) == (("a cat, a dog",), [])


def test_a_caption_with_commas_and_without_quotes_is_not_cut(tmp_path):
    captions, notes = captions_of(tmp_path, {"metadata.csv": "file_name,text\n0.png,a cat, a dog\n"})
    assert captions == () and "more cells than columns, the first in line 2" in notes[0]


def test_caption_files_that_belong_to_nothing_are_counted(tmp_path):
    files = {"captions/0.txt": "a cat", "captions.json": "{}", "0.txt": "a dog"}
    captions, notes = captions_of(tmp_path, files)
    assert captions == ("a dog",) and notes == [
        "2 caption files belong to no file here, such as captions.json",
    ]


def test_folders_of_operating_systems_are_no_classes(tmp_path):
    for name in ("cat/0.png", "__MACOSX/0.png", "@eaDir/0.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(PICTURE)
    assert collection_of(opened(tmp_path, "images")).classes == ("cat",)


IMAGES = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).astype(np.uint8) * 2


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"label": np.array([2**32, 2**32 + 1])}, "labels from 0 to 2147483646, got 4294967296 to 4294967297"),
        ({"label": np.array([0, -1])}, "labels from 0 to 2147483646, got -1 to 0"),
        ({"label": np.array([0, 1]), "levels": 200.5}, r"`levels` as one whole number, got float64 \[\]"),
        ({"label": np.array([0, 1]), "levels": [200, 200]}, r"`levels` as one whole number, got int64 \[2\]"),
    ],
    ids=["wrapped labels", "negative labels", "broken levels", "two levels"],
)
def test_arrays_that_would_be_misread_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "train.npz", image=IMAGES, **arrays)
    with pytest.raises(ValueError, match=sentence):
        read_images(tmp_path / "train.npz", "train", None, with_labels=True)


def test_one_array_without_a_name_is_no_archive(tmp_path):
    with (tmp_path / "train.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"one array without a name; np\.savez"):
        read_images(tmp_path / "train.npz", "train", None, with_labels=True)
