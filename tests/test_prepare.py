"""`starflow prepare`: what it writes, what it leaves out, and what is left of it after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest
from picture_files import encoded, picture, write_tar
from prepared_folders import contents, manifest, opened, photos, prepare, same

from starflow_jax.data.pipeline.batches import train_loader
from starflow_jax.data.pipeline.opening_notes import class_names, opening_notes
from starflow_jax.data.preparation import shard_writing
from starflow_jax.data.sources.stored_image import unpack


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos")


def test_a_prepared_folder_gives_the_batches_of_the_files(folder, tmp_path):
    assert prepare("folder", folder, tmp_path / "out", "--shards", "3") == 0
    fields = {"aspect_ratios": ("1:1", "2:1"), "crop": "random", "flip": 0.5}
    files, stored = opened(folder, "images", **fields), opened(tmp_path / "out", **fields)
    assert len(files) == len(stored) == 7 and class_names(stored) == ("cat", "dog")
    assert [len(part.source) for part in stored.components] == [5, 2] and stored.num_classes == 2
    for index in range(7):
        same(files[index], stored[index])
    loaders = [train_loader(source, 3, 5, threads=threads) for source, threads in ((files, 0), (stored, 2))]
    for _ in range(4):
        same(*map(next, loaders))
    for loader in loaders:
        loader.close()


def test_splits_classes_and_captions_are_those_of_the_source(folder, tmp_path):
    for split in ("train", "Test"):
        (tmp_path / "data" / split).parent.mkdir(exist_ok=True)
        photos(tmp_path / "data" / split)
    (tmp_path / "data" / "Test" / "dog").rename(tmp_path / "data" / "Test" / "elk")
    (tmp_path / "data" / "train" / "cat" / "0.txt").unlink()
    assert prepare("folder", tmp_path / "data", tmp_path / "out") == 0
    held_out = opened(tmp_path / "out", split="test")
    assert [int(held_out[index]["label"]) for index in range(7)] == [0] * 4 + [-1] * 3
    splits = manifest(tmp_path / "out")["splits"]
    assert list(splits) == ["train", "test"] and splits["train"]["captions"] == {"": 1, "text file": 6}
    assert opened(tmp_path / "out")[0]["caption"] == "" and opened(tmp_path / "out")[1]["caption"] == "a cat"
    assert "3 files are of classes that the training split lacks" in manifest(tmp_path / "out")["notes"][0]
    assert prepare("folder", tmp_path / "data", tmp_path / "test", "--splits", "test") == 0
    assert list(manifest(tmp_path / "test")["splits"]) == ["test"]
    with pytest.raises(ValueError, match=r"must have a split train, got test; data\.splits names another"):
        opened(tmp_path / "test")
    assert len(opened(tmp_path / "test", splits=(("train", "test"),))) == 7


def test_tars(tmp_path):
    members = [{"png": encoded(picture(number)), "txt": b"a dog", "cls": b"2"} for number in range(5)]
    (tmp_path / "a").mkdir()
    write_tar(tmp_path / "a" / "0.tar", members)
    assert prepare("tar", tmp_path / "a", tmp_path / "out", "--shards", "2") == 0
    files, stored = opened(tmp_path / "a", "tars"), opened(tmp_path / "out")
    assert stored.num_classes == 3 and len(stored) == 5
    for index in range(5):
        same(files[index], stored[index])


def test_records_name_their_tar_without_the_path_of_all(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        write_tar(tmp_path / "data" / folder / "0.tar", [{"png": encoded(picture(3))}])
        with (tmp_path / "data" / folder / "0.tar").open("rb") as tar:
            fsspec.filesystem("memory").pipe(f"/named/data/{folder}/0.tar", tar.read())
    monkeypatch.chdir(tmp_path / "data")
    patterns = (f"{tmp_path}/data/*/0.tar", "*/0.tar", "../data/*/0.tar", "memory://named/data/*/0.tar")
    for number, pattern in enumerate(patterns):
        assert prepare("tar", pattern, tmp_path / str(number)) == 0
        (record,) = (tmp_path / str(number)).glob("*.array_record")
        assert record.read_bytes() == next((tmp_path / "0").glob("*.array_record")).read_bytes()
    images = opened(tmp_path / "0").components[0].source.collection
    names = [unpack(images.records()[index]).name.rpartition("/")[0] for index in range(2)]
    assert names == ["a/0.tar", "b/0.tar"]


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"jpg": [encoded(picture(number)) for number in range(4)], "cls": [3, 0, 1, 2], "said": ["a cat"] * 4}
    parquet.write_table(arrow.table(columns), tmp_path / "train.parquet", row_group_size=3)
    options = ("--features", "image=jpg,label=cls,caption=said")
    assert prepare("parquet", tmp_path, tmp_path / "out", *options) == 0
    stored = opened(tmp_path / "out")
    assert [int(stored[index]["label"]) for index in range(4)] == [3, 0, 1, 2] and stored.num_classes == 4
    assert stored[3]["caption"] == "a cat" and manifest(tmp_path / "out")["features"]["image"] == "jpg"


def test_what_cannot_be_read_is_counted_and_left_out(folder, tmp_path, capsys):
    (folder / "cat" / "bad.png").write_bytes(b"no picture")
    whole = encoded(picture(9, 64, 64))
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "1.txt").write_bytes(b"\xff")
    report = tmp_path / "report.json"
    assert prepare("folder", folder, tmp_path / "out", "--decode", "--json", str(report)) == 0
    said = json.loads(report.read_text())["splits"]["train"]
    assert said["examples"] == 6 and said["skipped"] == 3 and sum(said["reasons"].values()) == 3
    assert set(said["names"]) == {"cat/bad.png", "dog/cut.png", "dog/1.png"}
    printed = capsys.readouterr().out
    assert "skipped 1: it is not an image, or of an unsupported format" in printed
    assert opening_notes(opened(tmp_path / "out"))[0].startswith("3 examples could not be read when")
    assert prepare("folder", folder, tmp_path / "headers") == 0  # the header of cut.png is whole
    assert manifest(tmp_path / "headers")["splits"]["train"]["count"] == 7


def test_names_need_not_be_text(folder, tmp_path):
    for name, data in ((b"\xff.png", encoded(picture(3))), (b"\xfe.png", b"bad")):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), b"cat", name))).write_bytes(data)
    assert prepare("folder", folder, tmp_path / "out", "--json", str(tmp_path / "report.json")) == 0
    (name,) = manifest(tmp_path / "out")["splits"]["train"]["names"]
    assert name.endswith("\udcfe.png") and len(opened(tmp_path / "out")) == 8


def test_a_folder_without_a_readable_image_ends_in_a_sentence(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(b"bad")
    assert prepare("folder", tmp_path / "photos", tmp_path / "out") == 2
    assert "must have an image that can be read, got none, such as" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not complete: the same starflow prepare command continues it"):
        opened(tmp_path / "out")


@pytest.fixture
def interrupted(folder, tmp_path, monkeypatch, capsys):
    """A folder whose third of five shards was being written."""
    write = shard_writing.write_shard
    written = []

    def interrupt(collection, out, job, *rest):
        if len(written) == 2:
            (out / f".{job.stem}.{'0' * 32}.array_record").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(job)
        write(collection, out, job, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(shard_writing, "write_shard", interrupt)
        assert prepare("folder", folder, tmp_path / "out", "--shards", "5") == 130
    assert "the same command continues" in capsys.readouterr().err
    return tmp_path / "out"


def test_an_interrupted_preparation_is_not_read_and_continues_to_the_same_bytes(folder, interrupted, tmp_path):
    with pytest.raises(ValueError, match="is not complete"):
        opened(interrupted)
    kept = interrupted / "train-00000-of-00005.array_record"
    damaged = interrupted / "train-00001-of-00005.array_record"
    time_written = kept.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for number, text in enumerate(('{"count": 0, "digest": "zz"}', '{"captions": []}', '{"other": 1}'), 2):
        (interrupted / f"train-{number:05d}-of-00005.facts.json").write_text(text)
    assert prepare("folder", folder, interrupted, "--shards", "5") == 0
    assert kept.stat().st_mtime_ns == time_written
    assert prepare("folder", folder, tmp_path / "whole", "--shards", "5") == 0
    assert contents(interrupted) == contents(tmp_path / "whole")
    assert sorted(path.suffix for path in interrupted.iterdir()) == [".array_record"] * 5 + [".json"] + [".sizes"] * 5


def test_an_interrupted_preparation_of_other_data_is_refused(folder, interrupted, capsys):
    assert prepare("folder", folder, interrupted, "--shards", "4") == 2
    assert "which was begun with other shards" in capsys.readouterr().err
    (folder / "cat" / "9.png").write_bytes(encoded(picture(9)))
    assert prepare("folder", folder, interrupted, "--shards", "5") == 2
    assert "one that the same command began on the same data" in capsys.readouterr().err


def test_a_complete_folder_is_left_as_it_is(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare("folder", folder, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "preparation.json").write_text("{}")  # as after a kill between the last two steps
    assert prepare("folder", folder, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert (
        prepare("folder", folder, out, "--decode") == 2
        and "which was begun with other decode" in capsys.readouterr().err
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    assert prepare("folder", folder, tmp_path / "other") == 2 and "contains files" in capsys.readouterr().err


def test_the_fingerprint_depends_on_examples_and_their_order_alone(folder, tmp_path, monkeypatch):
    def fingerprint(name, *options, source=folder):
        assert prepare("folder", source, tmp_path / name, *options) == 0
        return manifest(tmp_path / name)["splits"]["train"]["fingerprint"]

    first = fingerprint("one", "--shards", "1")
    assert first == fingerprint("four", "--shards", "4")
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "other" / "photos")
    assert first == fingerprint("typed", "--shards", "1", source="photos") == fingerprint("copy", source=copy)
    assert contents(tmp_path / "one") == contents(tmp_path / "typed") == contents(tmp_path / "copy")
    assert not any(os.fsencode(tmp_path) in data for data in contents(tmp_path / "one").values())
    (folder / "cat" / "0.txt").write_text("a dog")
    assert first != fingerprint("captions")
    (folder / "cat" / "0.txt").write_text("a cat\n")
    assert first == fingerprint("again")
    (folder / "cat" / "0.png").rename(folder / "cat" / "9.png")
    assert first != fingerprint("order")


@pytest.mark.parametrize("pool", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_write_the_same_bytes(folder, tmp_path, monkeypatch, pool):
    assert prepare("folder", folder, tmp_path / "one", "--shards", "4") == 0
    if pool == "threads":  # processes take seconds to start
        threads = lambda workers, mp_context: ThreadPoolExecutor(workers)  # noqa: E731
        monkeypatch.setattr("starflow_jax.data.preparation.prepare.ProcessPoolExecutor", threads)
    assert prepare("folder", folder, tmp_path / "two", "--shards", "4", "--workers", "3") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_worker_ends_in_a_sentence(folder, tmp_path, monkeypatch, capsys):
    class Broken(ThreadPoolExecutor):
        def __init__(self, workers, mp_context):
            super().__init__(workers)

        def submit(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr("starflow_jax.data.preparation.prepare.ProcessPoolExecutor", Broken)
    assert prepare("folder", folder, tmp_path / "out", "--workers", "2") == 2
    assert "a process that wrote shards was killed" in capsys.readouterr().err


def test_a_full_disk_ends_in_a_sentence(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shard_writing, "replacing", lambda path: nullcontext(Path("/dev/full")))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    assert prepare("folder", folder, tmp_path / "out") == 2
    assert "cannot be written: write() failed: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("folder", "--features", "image=x"), "features must be one of 'caption', got 'image'"),
        (("tfds", "--features", "picture=x"), "features must be one of 'image', 'label', 'caption', got 'picture'"),
        (("folder", "--features", "caption"), "--features must be NAME=SOURCE,..., got 'caption'"),
        (("folder", "--splits", "train=test"), "--splits must be among train, test for folder, got 'train=test'"),
        (("folder", "--splits", "validation"), "--splits must be among train, test for folder, got 'validation'"),
        (("tfds", "--splits", "a/b=train"), "--splits must be names of letters, digits and underscores, got 'a/b'"),
        (("tfds", "--splits", "a,a"), "--splits must name every split once, got a, a"),
        (("tar", "--data-dir", "x"), "--data-dir is read for tfds, and not for tar: got x"),
        (("folder", "--tar-keys", "last dot"), "--tar-keys is read for tar, and not for folder: got last dot"),
        (("zip",), "KIND must be one of folder, tar, parquet, tfds, got 'zip'"),
        (("folder",), "data folder gone does not exist"),
        (("tfds", "--data-dir", "gs://b/x"), "--data-dir must be a path of a file system, got the address 'gs://b/x'"),
        (("tar",), "data path gone contains no .tar file for the train split"),
    ],
)
def test_bad_requests_end_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    kind, *options = arguments
    assert prepare(kind, "gone", tmp_path / "out", *options) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_sources_and_folders_in_a_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))
    files = fsspec.filesystem("memory")
    write_tar(tmp_path / "train-0.tar", [{"png": encoded(picture(number)), "txt": b"a cat"} for number in range(3)])
    photos(tmp_path / "photos")
    files.put(str(tmp_path / "train-0.tar"), "/prepare/tars/train-0.tar")
    files.put(str(tmp_path / "photos"), "/prepare/photos", recursive=True)
    assert prepare("tar", "memory://prepare/tars/train-*.tar", "memory://prepare/three", "--shards", "2") == 0
    assert "written: memory://prepare/three" in capsys.readouterr().out
    assert prepare("folder", "memory://prepare/photos", "memory://prepare/seven") == 0
    assert prepare("folder", "memory://prepare/photos", "memory://prepare/seven") == 0  # complete already
    assert opened("memory://prepare/three")[2]["caption"] == "a cat"
    stored, local = opened("memory://prepare/seven"), opened(tmp_path / "photos", "images")
    for index in range(7):
        same(stored[index], local[index])
    assert prepare("tar", "memory://prepare/none-*.tar", tmp_path / "out") == 2
    assert "contains no .tar file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_leaves_no_folder_that_is_read(tmp_path):
    folder = photos(tmp_path / "photos")
    for number in range(400):
        (folder / "dog" / f"x{number}.png").write_bytes(encoded(picture(number, 200, 200)))
    command = [sys.executable, "-m", "starflow_jax", "prepare", "folder", str(folder), "--shards", "100", "--quiet"]
    out = tmp_path / "out"
    kills = 0
    while True:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.facts.json"))) < 20 * (kills + 1):
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        with pytest.raises(ValueError, match="is not complete"):
            opened(out)
    assert kills >= 2 and process.returncode == 0
    assert prepare("folder", folder, tmp_path / "whole", "--shards", "100") == 0
    assert contents(out) == contents(tmp_path / "whole")
