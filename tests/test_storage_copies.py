"""Local copies of what lies in a store: complete, current, bounded, and shown as addresses."""

import os
import subprocess
import sys

import pytest
from storage_faults import Faulty, memory_store

from starflow_jax.core.storage import copies
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import fetch_copy, local_path
from starflow_jax.core.storage.places import COPIES, WORK, copies_limit, local_place, shown, storage_folder
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import open_store


@pytest.fixture(autouse=True)
def folder_of_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_path_stays_as_it_is(tmp_path):
    assert local_path(tmp_path / "x") == tmp_path / "x" and local_path("runs/a").as_posix() == "runs/a"


def test_a_folder_is_copied_once_and_brought_up_to_date():
    store = memory_store()
    store.write("a", b"1")
    store.write("b/c", b"2")
    place = fetch_copy(store)
    assert texts(place) == {"a": "1", "b/c": "2"}
    gets = store.files.calls["get_file"]
    assert fetch_copy(store) == place and store.files.calls["get_file"] == gets
    store.write("a", b"11")
    store.remove("b/c")
    fetch_copy(store)
    assert texts(place) == {"a": "11"} and store.files.calls["get_file"] == gets + 1
    assert place.joinpath("a").stat().st_mtime_ns == store.facts("a").modified_ns


def test_one_object_and_what_is_missing():
    store = memory_store()
    store.write("a.npz", b"1")
    assert fetch_copy(store.at("a.npz")).read_bytes() == b"1"
    assert not fetch_copy(store.at("b.npz")).exists()


def test_only_what_is_wanted_is_copied():
    store = memory_store()
    for name in ("config.json", "checkpoints/5/params/x", "checkpoints/5/opt_state/x"):
        store.write(name, b"1")
    place = fetch_copy(store, lambda name: "opt_state" not in name)
    assert set(texts(place)) == {"config.json", "checkpoints/5/params/x"}


def test_an_address_through_a_path_a_pattern_and_a_scale(monkeypatch):
    store = memory_store(files=Faulty().inner)
    monkeypatch.setattr(copies, "open_store", open_store)
    for name in ("train-0.tar", "train-1.tar", "test-0.tar", "vae.npz"):
        store.write(name, b"1")
    address = str(store.address)
    pattern = local_path(f"{address}/train-*.tar")
    assert sorted(path.name for path in pattern.parent.glob(pattern.name)) == ["train-0.tar", "train-1.tar"]
    scaled = local_path(f"{address}/vae.npz:0.6")
    assert str(scaled).endswith("vae.npz:0.6") and local_path(f"{address}/vae.npz").is_file()


def test_a_damaged_object_of_a_published_folder_is_refused(tmp_path):
    store = memory_store()
    (tmp_path / "w").mkdir()
    (tmp_path / "w/a").write_text("123")
    Publication(store, tmp_path / "w").publish()
    store.write("a", b"124")
    with pytest.raises(StoreError, match=r"memory://\S+/a is damaged: it does not match its size and checksum"):
        fetch_copy(store)
    store.remove("a")
    with pytest.raises(StoreError, match="is missing, and the list of its folder names it"):
        fetch_copy(store)
    assert not [path for path in storage_folder().rglob("*") if path.is_file() and COPIES + "/.used" not in str(path)]


def test_the_copies_are_bounded_and_the_oldest_ones_give_way():
    stores = [memory_store() for _ in range(3)]
    for store in stores:
        store.write("x", bytes(100))
    # Another process made the first two: this one has not opened them.
    code = """
import pathlib, sys
sys.path.insert(0, "tests")
from storage_faults import memory_store
from starflow_jax.core.storage.copies import fetch_copy
for number, name in enumerate(sys.argv[1:]):
    store = memory_store(name)
    store.write("x", bytes(100))
    fetch_copy(store)
"""
    names = [store.address.bucket for store in stores]
    subprocess.run([sys.executable, "-c", code, *names[:2]], check=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    stamps = copies._copies_by_use(storage_folder() / COPIES)
    first, second = (place for _, place in stamps)
    fetch_copy(stores[2], limit=250)
    assert not first.exists() and second.exists() and local_place(stores[2].address, COPIES).is_dir()
    with pytest.raises(ValueError, match=r"needs a local copy of 1e-07 GB.*STARFLOW_STORAGE_LIMIT sets it"):
        fetch_copy(stores[0], limit=150)


@pytest.mark.parametrize("text", ["x", "-1", "nan", "0", "inf"])
def test_a_limit_that_is_no_number_is_refused(text, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE_LIMIT", text)
    with pytest.raises(ValueError, match="STARFLOW_STORAGE_LIMIT must be a number of gigabytes above 0"):
        copies_limit()


def test_copies_are_shown_as_their_addresses():
    address = Address.parse("gs://b/runs/a")
    for kind in (COPIES, WORK):
        place = local_place(address, kind)
        assert shown(f"written: {place}/x.png, {place}") == "written: gs://b/runs/a/x.png, gs://b/runs/a"
    assert shown("/tmp/gs/b") == "/tmp/gs/b" and shown(storage_folder()) == str(storage_folder())


def test_places_that_are_written_do_not_contain_each_other():
    keys = ["", "runs", "runs/a", "runs/a/sweep", "runs=/a", "runs+/a", "runs%2Fa/b", "a b/c", "x" * 198, "x" * 300]
    keys += ["y/" * 150 + "z.png", "y/" * 99 + "z", "y/" * 66 + "z", "y/" * 66 + "z/a+"]
    addresses = [Address("gs", bucket, key) for bucket in ("b", "b=") for key in keys]
    places = [local_place(address, WORK) for address in addresses]
    assert len(set(places)) == len(places)
    assert not [one for one in places for other in places if one != other and one.is_relative_to(other)]
    for address, place in zip(addresses, places, strict=True):
        assert place.name == address.name and max(map(len, place.parent.parts)) <= 201
        assert shown(f"in {place}: {place}/x.png") == f"in {address}: {address}/x.png"
