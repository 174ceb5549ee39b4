"""Stores: calls are repeated within bounds, and conditional writes have one winner."""

from pathlib import Path

import pytest
from storage_faults import PATIENT, Faulty, memory_store, race_to_write

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.retries import Conflict, Retries, StoreError
from starflow_jax.core.storage.store import open_store


def test_a_put_that_fails_twice_arrives():
    store = memory_store()
    store.files.failures["pipe_file"] = 2
    store.write("x", b"1")
    assert store.read("x") == b"1" and store.files.calls["pipe_file"] == 3


def test_attempts_are_bounded_and_pauses_grow():
    pauses = []
    store = memory_store(retries=Retries(attempts=4, sleep=pauses.append))
    store.files.failures["pipe_file"] = 99
    with pytest.raises(StoreError, match=r"memory://\S+/folder/x cannot be written: ConnectionResetError"):
        store.write("x", b"1")
    assert store.files.calls["pipe_file"] == 4 and len(pauses) == 3
    assert all(0.5 * mean <= pause <= 1.5 * mean for pause, mean in zip(pauses, (0.25, 0.5, 1.0), strict=True))


def test_what_is_missing_is_not_asked_for_again():
    store = memory_store()
    assert store.facts("x") is None and store.list() == {}
    with pytest.raises(FileNotFoundError):
        store.read("x")
    assert store.files.calls["cat_file"] == 1


def test_missing_credentials_are_not_asked_for_again():
    class NoCredentialsError(Exception):
        pass

    calls = []

    def call():
        calls.append(1)
        raise NoCredentialsError

    with pytest.raises(NoCredentialsError):
        PATIENT(call)
    assert len(calls) == 1


def test_a_neighbour_with_a_longer_name_is_not_listed():
    store = memory_store()
    store.write("x", b"1")
    store.files.pipe_file(f"{store._path('')}2/y", b"2")
    assert list(store.list()) == ["x"]


def test_an_object_that_arrives_in_part_is_not_taken(tmp_path):
    store = memory_store(retries=Retries(attempts=2, sleep=lambda seconds: None))
    store.write("x", b"123")
    assert store.fetch("x", tmp_path / "x", 4)[0] == 3  # as the store says, too
    store.files.inner.get_file, real = lambda path, target: Path(target).write_bytes(b"12"), store.files.inner.get_file
    try:
        with pytest.raises(StoreError, match="2 of 3 bytes arrived"):
            store.fetch("x", tmp_path / "x", 3)
    finally:
        store.files.inner.get_file = real


def test_conditional_writes():
    store = memory_store()
    first = store.write_if("x", b"1", None)
    with pytest.raises(Conflict):
        store.write_if("x", b"2", None)
    second = store.write_if("x", b"2", first)
    with pytest.raises(Conflict):
        store.write_if("x", b"3", first)
    assert store.read("x") == b"2" and second != first


def test_a_conditional_write_whose_answer_is_lost_counts():
    class Lossy(Faulty):
        def pipe_file(self, path, data):
            self.inner.pipe_file(path, data)
            raise ConnectionResetError("after it was written")

    store = memory_store(files=Lossy())
    version = store.write_if("x", b"1", None)
    assert version == store.facts("x").version


def test_one_of_many_racing_writers_wins():
    race_to_write(memory_store(), 8)


@pytest.mark.parametrize("text", ["file://b/x", "zip://b/x", "simplecache://b/x", "nosuchscheme://b/x"])
def test_schemes_that_are_no_stores_are_refused(text):
    with pytest.raises(ValueError, match=r"must (be the address|have the scheme) of a store"):
        open_store(Address.parse(text), PATIENT)
