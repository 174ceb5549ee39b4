"""The store on servers of S3 and GCS: what the memory store cannot show."""

import os
import uuid

import pytest
from storage_faults import race_to_write
from storage_servers import BUCKET, server, skip_without

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import fetch_copy
from starflow_jax.core.storage.lease import InUse, Lease, Timing
from starflow_jax.core.storage.manifest import LEASE, MANIFEST
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.retries import Conflict, StoreError
from starflow_jax.core.storage.store import Store, open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["s3", "gs"])
def running(request, tmp_path_factory):
    skip_without(request.param)
    with server(request.param, tmp_path_factory.mktemp("server")) as environment:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        yield request.param
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def store(running, tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))
    return open_store(Address.parse(f"{running}://{BUCKET}/{uuid.uuid4().hex}"))


def test_objects(store):
    assert store.facts("x") is None and store.list() == {}
    store.write("x", b"0123456789")
    store.write("a/b c", b"2")
    assert store.read("x") == b"0123456789" and store.read("x", 2, 5) == b"234"
    assert {name: facts.size for name, facts in store.list().items()} == {"a/b c": 1, "x": 10}
    assert store.list()["x"].modified_ns == store.facts("x").modified_ns > 1.6e18
    store.remove("x")
    store.remove("x")
    assert list(store.list()) == ["a/b c"]


def test_conditional_writes(store):
    first = store.write_if("x", b"1", None)
    with pytest.raises(Conflict):
        store.write_if("x", b"2", None)
    second = store.write_if("x", b"3", first)
    with pytest.raises(Conflict):
        store.write_if("x", b"4", first)
    with pytest.raises(Conflict):
        store.write_if("y", b"4", first)
    assert store.read("x") == b"3" and store.facts("x").version == second != first


def test_one_of_many_racing_writers_wins(store):
    race_to_write(store, 6)


def test_a_folder_and_its_copy(store, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "a").write_bytes(b"1" * 1000)
    publication = Publication(store, folder)
    publication.publish()
    (folder / "a").write_bytes(b"2" * 1000)
    (folder / "b").write_bytes(b"3")
    publication.publish()
    place = fetch_copy(store)
    assert (place / "a").read_bytes() == b"2" * 1000 and (place / "b").read_bytes() == b"3"
    assert set(store.list()) == {"a", "b", MANIFEST}


def test_a_large_object_is_sent_in_parts(store, tmp_path, monkeypatch):
    from starflow_jax.core.storage import publication

    monkeypatch.setattr(publication, "_IN_MEMORY", 2**20)
    folder = tmp_path / "w"
    folder.mkdir()
    data = bytes(range(256)) * 4096 * 8
    (folder / "a").write_bytes(data)
    Publication(store, folder).publish()
    facts = store.facts("a")
    file = StoredFile.at(store.address / "a", facts.size, facts.modified_ns)
    assert file.read(5 * 2**20 + 3, 4) == bytes([3, 4, 5, 6])
    assert (fetch_copy(store) / "a").read_bytes() == data


def test_a_lease(store):
    lease = Lease(store, "trains", timing=Timing(beat=0.2, expiry=20))
    with pytest.raises(InUse, match=r"is in use by process \d+ on \S+, which trains in it"):
        Lease(store, "trains", timing=Timing(beat=0.2, expiry=20))
    lease.check()
    lease.release()
    assert store.facts(LEASE) is None


def test_a_bucket_that_does_not_exist(running):
    nowhere = open_store(Address.parse(f"{running}://nowhere-{uuid.uuid4().hex}/x"))
    with pytest.raises((StoreError, FileNotFoundError)):
        nowhere.write("a", b"1")
    with pytest.raises((StoreError, FileNotFoundError, Conflict)):
        nowhere.write_if("a", b"1", None)
