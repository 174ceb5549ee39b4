"""Files whose names say nothing of what they contain are read by their content, and what is left aside is counted."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from picture_files import encoded, picture, write_clip
from test_file_layouts import MASK, PICTURE, collection_of, opened, write_members

from starflow_jax.data.pipeline.opening_notes import opening_notes
from starflow_jax.data.sources.folders import open_folder
from starflow_jax.data.suggestion import survey_folder
from starflow_jax.evaluation.video.clip_measurement import clip_paths
from starflow_jax.media import read_video
from starflow_jax.media.file_kind import kind_of
from starflow_jax.media.medium import IMAGES, VIDEOS


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, 5)
    return path.read_bytes()


def write_files(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_images_without_a_known_suffix_are_read_and_other_files_are_counted(tmp_path, clip):
    jpeg = encoded(picture(1), "JPEG")
    write_files(tmp_path, {
        "0": PICTURE, "0.txt": b"a cat", "1.jpg_large": jpeg, "img.v2": PICTURE, "img.v2.txt": b"a dog",
        "cat/2.PNG": PICTURE, "cat/3.webp?s=1": encoded(picture(2), "WEBP"), "cat/4.bmp2": encoded(picture(3), "BMP"),
        # What is no image of its own, or none at all.
        "readme.md": b"words", "LICENSE": b"BMW and others", "notes": b"The free words", "empty": b"", "clip": clip,
        "clip.mp4": clip, "5.nef": PICTURE, "5.png~": PICTURE, "6.png.bak": PICTURE, ".hidden": PICTURE,
    })  # fmt: skip
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: opening it would wait for ever
    source = opened(tmp_path, "images")
    folder = collection_of(source)
    assert folder.files == ("0", "1.jpg_large", "cat/2.PNG", "cat/3.webp?s=1", "cat/4.bmp2", "img.v2")
    assert [folder.captions(index).texts for index in (0, 5)] == [{"caption": ("a cat",)}, {"caption": ("a dog",)}]
    assert opening_notes(source) == [
        "9 files are no images and are left aside: 4 without a suffix, 1 .bak, 1 .md, 1 .mp4, and others"
    ]
    np.testing.assert_array_equal(source[0]["image"], source[5]["image"])
    assert survey_folder(tmp_path).num_images == 6


def test_videos_without_a_known_suffix_are_read(tmp_path, clip):
    write_files(tmp_path, {"a": clip, "b.video": clip, "c.MP4": clip, "c.lrv": clip, "c.jpg": PICTURE, "words": b"x"})
    folder = open_folder(tmp_path, "train", VIDEOS)
    assert folder.files == ("a", "b.video", "c.MP4")
    assert len(folder.notes) == 1 and folder.notes[0].startswith("3 files are no videos and are left aside: 1 ")
    request = type("Request", (), {"video": (tmp_path,)})
    assert [path.name for path in clip_paths(request, "video")] == ["a", "b.video", "c.MP4"]


def test_a_folder_without_images_says_what_it_contains(tmp_path, clip):
    write_files(tmp_path, {"a.mp4": clip, "b.mp4": clip, "c.x\ny": b"", "d." + "z" * 40: b""})
    with pytest.raises(ValueError, match=r"contains no image, but other files: 2 \.mp4, 2 with unusual suffixes$"):
        open_folder(tmp_path, "train", IMAGES)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none contains no image$"):
        open_folder(tmp_path / "none", "train", IMAGES)


def test_frames_without_a_suffix_are_a_video(tmp_path):
    frames = [picture(seed) for seed in range(3)]
    write_files(
        tmp_path, {"f10": encoded(frames[2]), "f9": encoded(frames[1]), "f1": encoded(frames[0]), "x": b"words"}
    )
    np.testing.assert_array_equal(read_video(tmp_path).frames, np.stack(frames))


def test_words_are_no_pictures():
    assert kind_of(io.BytesIO(b"BM is how this text begins, and it goes on")) is None
    assert kind_of(io.BytesIO(b"The free words")) is None
    assert kind_of(io.BytesIO(b"II*\0\x10\0\0\0CR\2\0")) is None  # a raw file of Canon
    assert kind_of(io.BytesIO(encoded(picture(0), "BMP"))).format == "BMP"


# Tars


def test_members_without_a_known_suffix_are_pictures_where_a_key_has_no_other(tmp_path):
    write_members(tmp_path / "a.tar", [
        ("d/0", PICTURE), ("d/0.txt", b"a cat"),
        ("d/1.seg", MASK), ("d/1.jpg", PICTURE),
        ("d/2.bin", b"words"), ("d/2.image", PICTURE), ("d/2.mask", MASK),
        ("d/3.txt", b"a dog"), ("d/4.npy", b""), ("d/._0.jpg", PICTURE), ("README", b"words"),
    ])  # fmt: skip
    source = opened(tmp_path, "tars")
    assert [(entry.key, entry.image.ending) for entry in collection_of(source).entries] == [
        ("d/0", ""), ("d/1", ".jpg"), ("d/2", ".image"),
    ]  # fmt: skip
    assert source[0]["caption"] == "a cat" and source[2]["caption"] == ""
    assert opening_notes(source) == [
        "1 images share the key of another, which is read, and are left aside: 1 .mask",
        "3 keys contain no image and are left aside, such as d/3: 1 .npy, 1 .txt, 1 without a suffix",
    ]
    keys = [e.key for e in collection_of(opened(tmp_path, "tars", options=(("keys", "last dot"),))).entries]
    assert keys == ["d/0", "d/1", "d/2"]


def test_links_and_what_follows_the_end_of_a_tar_are_counted(tmp_path):
    write_members(tmp_path / "a.tar", [("0.png", PICTURE)])
    write_members(tmp_path / "b.tar", [("1.png", PICTURE)])
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        tar.addfile(link)
    with (tmp_path / "a.tar").open("ab") as joined, (tmp_path / "b.tar").open("rb") as second:
        shutil.copyfileobj(second, joined)
    links, ended = opening_notes(opened(tmp_path, "tars"))
    assert links == "1 members are links and are left aside"
    assert ended.startswith("1 tars, such as a.tar, contain more behind the end of the archive")


def test_a_damaged_header_inside_a_tar_is_named(tmp_path):
    write_members(tmp_path / "a.tar", [(f"{number}.png", PICTURE) for number in range(3)])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        data[tar.getmembers()[1].offset + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    source = opened(tmp_path, "tars")
    assert len(source) == 1 and "or a damaged header, which is left aside" in opening_notes(source)[0]
