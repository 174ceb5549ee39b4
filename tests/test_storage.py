"""Stores: calls are repeated, folders are published whole, and one process at a time owns an address."""

import dataclasses
import json
import threading
import time
from pathlib import Path

import pytest
from storage_faults import PATIENT, Faulty, memory_store

from starflow_jax.core.storage import copies
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import fetch_copy, fetch_files
from starflow_jax.core.storage.lease import InUse, Lease, Timing
from starflow_jax.core.storage.manifest import LEASE, MANIFEST, PENDING, Pending, folder_files, read_manifest
from starflow_jax.core.storage.publication import Publication, remove_interrupted
from starflow_jax.core.storage.retries import Conflict, Retries, StoreError
from starflow_jax.core.storage.store import open_store
from starflow_jax.core.storage.working_folder import WorkingFolder, is_taken, publish_new


def filled(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(store):
    return {name: store.read(name).decode() for name in folder_files(store).files}


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
    store = memory_store()
    won = []

    def race(number):
        try:
            store.write_if("x", str(number).encode(), None)
            won.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("x") == str(won[0]).encode()


def test_a_folder_is_published_and_republished(tmp_path):
    store = memory_store()
    publication = Publication(store, filled(tmp_path / "w", a="1", b__c="2"))
    assert publication.publish() == 2 and publication.publish() == 0
    assert contents(store) == {"a": "1", "b/c": "2"}
    filled(tmp_path / "w", a="11", d="3")
    (tmp_path / "w/b/c").unlink()
    assert publication.publish() == 2
    assert contents(store) == {"a": "11", "d": "3"}
    assert set(store.list()) == {"a", "d", MANIFEST}  # nothing is left behind
    assert not list(tmp_path.glob(".*"))


def test_a_lagging_listing_does_not_show_in_a_published_folder(tmp_path):
    store = memory_store()
    publication = Publication(store, filled(tmp_path / "w", a="1"))
    publication.publish()
    store.files.freeze_listings(store._path(""))
    filled(tmp_path / "w", b="2")
    (tmp_path / "w/a").unlink()
    publication.publish()
    assert list(store.list()) == [MANIFEST, "a"]  # what the listing says
    assert contents(store) == {"b": "2"}


def test_unfinished_files_are_left_for_later(tmp_path):
    store = memory_store()
    folder = filled(tmp_path / "w", a="1", checkpoints__5__x="2")
    (folder / ".b.0123").write_text("half")
    (folder / "checkpoints/6.orbax-checkpoint-tmp").mkdir()
    (folder / "checkpoints/6.orbax-checkpoint-tmp/x").write_text("half")
    Publication(store, folder).publish()
    assert set(contents(store)) == {"a", "checkpoints/5/x"}


def test_a_publication_that_breaks_off_leaves_the_last_one(tmp_path):
    store = memory_store()
    publication = Publication(store, filled(tmp_path / "w", a="1"))
    publication.publish()
    filled(tmp_path / "w", b="2", c="3")
    impatient = Retries(attempts=1)
    broken = Publication(
        memory_store(store.address.bucket, store.files, impatient), tmp_path / "w", read_manifest(store)
    )
    store.files.failures["pipe_file"] = 0
    real = store.files.inner.pipe_file
    store.files.inner.pipe_file = lambda path, data: (
        (_ for _ in ()).throw(ConnectionResetError("gone")) if path.endswith(MANIFEST) else real(path, data)
    )
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            broken.publish()
    finally:
        store.files.inner.pipe_file = real
    assert contents(store) == {"a": "1"} and {"b", "c", PENDING} <= set(store.list())
    # The next owner removes what no list names, and nothing else.
    store.write("notes.txt", b"mine")
    assert set(remove_interrupted(store).files) == {"a"}
    assert set(store.list()) == {"a", "notes.txt", MANIFEST}


def test_a_replaced_file_of_an_interrupted_publication_is_taken_as_it_is(tmp_path):
    store = memory_store()
    Publication(store, filled(tmp_path / "w", a="1", b="2")).publish()
    # Killed after it wrote `a` and before it wrote the list.
    store.write(PENDING, Pending(replaced=("a",)).to_json())
    store.write("a", b"11")
    files = remove_interrupted(store).files
    fetch_files(store, tmp_path / "copy", files)
    assert (tmp_path / "copy/a").read_text() == "11"
    publication = Publication(store, tmp_path / "copy", read_manifest(store))
    assert publication.publish() == 1 and read_manifest(store).files["a"].size == 2
    assert set(store.list()) == {"a", "b", MANIFEST}


def test_files_that_are_removed_or_replaced_while_a_folder_is_copied(tmp_path, folder_of_copies):
    store = memory_store()
    publication = Publication(store, filled(tmp_path / "w", a="1", b="2"))
    publication.publish()
    old = read_manifest(store)
    filled(tmp_path / "w", a="3", c="4")
    (tmp_path / "w/b").unlink()
    publication.publish()
    lists = iter([old])
    real = copies.folder_files
    copies.folder_files = lambda store: next(lists, None) or real(store)
    try:
        place = fetch_copy(store)
    finally:
        copies.folder_files = real
    assert {path.name: path.read_text() for path in place.iterdir()} == {"a": "3", "c": "4"}


def test_removed_objects_of_an_interrupted_publication_are_removed_by_the_next_owner(tmp_path):
    store = memory_store()
    publication = Publication(store, filled(tmp_path / "w", a="1", b="2"))
    publication.publish()
    (tmp_path / "w/b").unlink()
    store.files.failures["rm_file"] = 99
    with pytest.raises(StoreError, match="b cannot be removed"):
        publication.publish()
    store.files.failures.clear()
    assert set(remove_interrupted(store).files) == {"a"} and set(store.list()) == {"a", MANIFEST}


def test_a_second_publisher_cannot_overwrite_the_first(tmp_path):
    store = memory_store()
    first, second = (Publication(store, filled(tmp_path / name, a=name)) for name in ("x", "y"))
    first.publish()
    with pytest.raises(StoreError, match="another process has written it meanwhile"):
        second.publish()


def test_a_folder_that_was_copied_to_the_store_is_what_the_listing_says(tmp_path):
    store = memory_store()
    store.write("a", b"1")
    store.write("c", b"3")
    assert contents(store) == {"a": "1", "c": "3"} and read_manifest(store) is None
    published = remove_interrupted(store)
    fetch_files(store, tmp_path / "w", published.files)
    publication = Publication(store, tmp_path / "w", published)
    assert publication.publish() == 0 and MANIFEST not in store.list()  # a command that is refused changes nothing
    filled(tmp_path / "w", b="2")
    (tmp_path / "w/a").unlink()
    assert publication.publish() == 1
    assert set(store.list()) == {"b", "c", MANIFEST} and contents(store) == {"b": "2", "c": "3"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", "a\\b", ""])
def test_names_that_leave_the_folder_are_refused(name):
    store = memory_store()
    store.write(MANIFEST, json.dumps({"format": "starflow files 1", "files": {name: [1, 2, 3]}}).encode())
    with pytest.raises(StoreError, match="is not the list of the files"):
        read_manifest(store)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "files": {}}', '{"format": "starflow files 1"}'])
def test_damaged_lists_are_refused(text):
    store = memory_store()
    store.write(MANIFEST, text.encode())
    with pytest.raises(StoreError, match="is not the list of the files"):
        folder_files(store)


class Hours:
    """A clock that passes only while somebody sleeps."""

    def __init__(self, during=lambda: None):
        self.now, self.during = 0.0, during

    def sleep(self, seconds):
        self.now += seconds
        self.during()

    def timing(self):
        return Timing(beat=10, expiry=60, sleep=self.sleep, clock=lambda: self.now)


def foreign(store, **fields):
    """The lease of a process of another machine."""
    content = {"token": "t", "doing": "trains", "host": "h7", "pid": 12, "machine": "m", "start": "1", "beats": 0}
    store.write(LEASE, json.dumps(content | fields).encode())


def test_a_lease_is_released_and_taken_again():
    store = memory_store()
    lease = Lease(store, "trains")
    lease.check()
    lease.release()
    assert store.facts(LEASE) is None
    Lease(store, "trains").release()


def test_the_lease_of_a_running_process_is_refused():
    store = memory_store()
    foreign(store)
    beats = iter(range(1, 99))
    hours = Hours(during=lambda: foreign(store, beats=next(beats)))
    with pytest.raises(InUse, match=r"memory://\S+ is in use by process 12 on h7, which trains in it"):
        Lease(store, "samples", timing=hours.timing())
    assert hours.now <= 10  # as soon as it beats


def test_the_lease_of_a_silent_process_is_taken_after_its_expiry():
    store = memory_store()
    foreign(store)
    hours, told = Hours(), []
    lease = Lease(store, "trains", timing=hours.timing(), wait=told.append)
    assert 60 <= hours.now <= 70 and len(told) == 1 and "60 s at most" in told[0]
    lease.release()


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once():
    store = memory_store()
    Lease(store, "trains").release()
    dead = Lease(store, "trains")
    content = json.loads(store.read(LEASE))
    dead._stopped.set()
    store.write(LEASE, json.dumps(content | {"start": "1", "token": "other"}).encode())
    hours = Hours()
    Lease(store, "trains", timing=hours.timing()).release()
    assert hours.now == 0


def test_an_owner_that_was_replaced_stops_writing(tmp_path):
    store = memory_store()
    told = threading.Event()
    lease = Lease(store, "trains", timing=Timing(beat=0.01, expiry=60), lost=lambda sentence: told.set())
    publication = Publication(store, filled(tmp_path / "w", a="1"), may_write=lease.check)
    foreign(store)
    assert told.wait(5)
    with pytest.raises(StoreError, match="no longer owned by this process: another process has taken it"):
        publication.publish()
    lease.release()
    assert json.loads(store.read(LEASE))["host"] == "h7"  # the lease of the other one stays
    assert set(store.list()) == {LEASE}


def test_an_owner_that_was_replaced_stops_between_files(tmp_path):
    store = memory_store()
    checks = iter([None, None, StoreError("no longer owned")])

    def may_write():
        if (answer := next(checks, StoreError("no longer owned"))) is not None:
            raise answer

    with pytest.raises(StoreError, match="no longer owned"):
        Publication(store, filled(tmp_path / "w", a="1", b="2", c="3"), may_write=may_write).publish()
    assert len(set(store.list()) - {PENDING}) == 1


def test_an_owner_whose_lease_cannot_be_read_after_a_conflict_goes_on():
    class Unread(Faulty):
        tries, failing = 0, True

        def cat_file(self, path, start=None, end=None):
            if self.failing and start is not None:  # of the lease after a conflict
                self.tries += 1
                raise ConnectionResetError("the connection broke")
            return self.inner.cat_file(path, start=start, end=end)

    told, hours = [], Hours()
    store = memory_store(files=Unread(), retries=Retries(attempts=1))
    lease = Lease(store, "trains", timing=dataclasses.replace(hours.timing(), beat=0.02), lost=told.append)
    own = store.read(LEASE)
    for _ in range(200):
        store.write(LEASE, own)  # of another version, as after a renewal whose answer was lost
        time.sleep(0.02)
        if store.files.tries > 2 or told:
            break
    lease.check()
    store.files.failing = False
    for _ in range(200):
        if json.loads(store.read(LEASE))["beats"] > json.loads(own)["beats"]:
            break
        time.sleep(0.02)
    lease.check()
    assert not told and json.loads(store.read(LEASE))["beats"] > json.loads(own)["beats"] and store.files.tries > 2
    store.remove(LEASE)  # and nobody else has taken it, so that time decides
    time.sleep(0.1)
    lease.check()
    hours.now += 43
    with pytest.raises(StoreError, match="the store did not answer"):
        lease.check()
    lease.release()
    assert len(told) == 1


def test_an_owner_that_cannot_renew_stops_before_others_may_begin():
    store = memory_store()
    hours = Hours()
    lease = Lease(store, "trains", timing=hours.timing())
    hours.now = 41
    lease.check()
    hours.now = 43
    with pytest.raises(StoreError, match="the store did not answer"):
        lease.check()
    lease.release()


def test_of_two_that_take_a_free_address_one_is_refused():
    store = memory_store()
    results = []

    def take():
        try:
            results.append(Lease(store, "trains", timing=Timing(beat=0.05, expiry=5)))
        except InUse as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases = [result for result in results if isinstance(result, Lease)]
    assert len(leases) == 1
    leases[0].release()


@pytest.mark.parametrize("text", ["file://b/x", "zip://b/x", "simplecache://b/x", "nosuchscheme://b/x"])
def test_schemes_that_are_no_stores_are_refused(text):
    with pytest.raises(ValueError, match=r"must (be the address|have the scheme) of a store"):
        open_store(Address.parse(text), PATIENT)


@pytest.fixture
def folder_of_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", "0.1")
    return tmp_path / "storage"


def working(store, said=None):
    timing = Timing(beat=0.5, expiry=5)
    said = [] if said is None else said
    return WorkingFolder(store, "trains", say=said.append, lost=said.append, timing=timing)


def test_a_working_folder_is_published_while_it_is_used(folder_of_copies):
    store = memory_store()
    with working(store) as folder:
        filled(folder.path, checkpoints__5__x="1")
        for _ in range(100):
            if read_manifest(store) is not None:
                break
            time.sleep(0.05)
        assert contents(store) == {"checkpoints/5/x": "1"}
        filled(folder.path, checkpoints__6__x="2")
    assert contents(store) == {"checkpoints/5/x": "1", "checkpoints/6/x": "2"}
    assert set(store.list()) == {"checkpoints/5/x", "checkpoints/6/x", MANIFEST} and not folder.path.exists()
    with working(store) as again:
        assert again.path.joinpath("checkpoints/6/x").read_text() == "2"


def test_a_store_that_fails_in_between_costs_nothing(folder_of_copies):
    said = []
    store = memory_store(retries=Retries(attempts=1))
    with working(store, said) as folder:
        store.files.failures["pipe_file"] = 3
        filled(folder.path, a="1")
        time.sleep(0.8)
    assert contents(store) == {"a": "1"}
    assert all("it is tried again" in sentence for sentence in said)


def test_a_store_that_stays_away_leaves_the_local_files_and_says_where(folder_of_copies):
    store = memory_store(retries=Retries(attempts=1))
    folder = working(store)
    filled(folder.path, a="1")
    store.files.failures["pipe_file"] = 10**6
    with pytest.raises(
        StoreError, match=r"cannot be written: .*; the folder work/memory/\S+ of the local copies keeps"
    ):
        folder.__exit__(None, None, None)
    store.files.failures.clear()
    with working(store) as again:
        assert (again.path / "a").read_text() == "1"
    assert contents(store) == {"a": "1"} and not list(again.path.parent.glob(".*.published"))


def killed(folder):
    """Ends a working folder as `kill -9` does: nothing more is published, and the locks end with the process."""
    folder._stopped.set()
    folder._thread.join()
    folder._stack.close()


def test_what_a_killed_process_left_is_continued_where_nobody_published_since(folder_of_copies, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", "3600")
    store = memory_store()
    for name in ("a", "b"):
        folder = working(store)
        filled(folder.path, **{name: "1"})
        if name == "b":
            folder.publish()
        filled(folder.path, **{f"{name}2": "2"})
        killed(folder)
    assert contents(store) == {"a": "1", "a2": "2", "b": "1"}
    with working(store) as folder:
        assert (folder.path / "b2").read_text() == "2"
    assert contents(store) == {"a": "1", "a2": "2", "b": "1", "b2": "2"}


def test_what_a_killed_process_left_gives_way_to_what_was_published_since(folder_of_copies, tmp_path, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", "3600")
    store = memory_store()
    folder = working(store)
    filled(folder.path, a="1")
    killed(folder)
    Publication(store, filled(tmp_path / "elsewhere", a="other")).publish()
    with working(store) as folder:
        assert (folder.path / "a").read_text() == "other"


def test_two_commands_of_one_machine_do_not_share_a_working_folder(folder_of_copies):
    store = memory_store()
    with working(store), pytest.raises(ValueError, match="is in use by another process of this machine"):
        working(store)


@pytest.mark.parametrize("text", ["0", "x", "nan", "-1", "1e9"])
def test_seconds_between_publications_are_checked(text, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", text)
    with pytest.raises(ValueError, match=r"STARFLOW_STORAGE_SECONDS must be a number of seconds from 0\.1"):
        working(memory_store())


def test_a_finished_folder_is_published_once(folder_of_copies, tmp_path):
    store = memory_store()
    assert not is_taken(store)
    publish_new(store, filled(tmp_path / "x", a="1"))
    assert is_taken(store) and contents(store) == {"a": "1"} and not (tmp_path / "x").exists()
    with pytest.raises(StoreError, match="must be a new folder, and another command has written files there meanwhile"):
        publish_new(store, filled(tmp_path / "y", b="2"))
    assert contents(store) == {"a": "1"} and (tmp_path / "y/b").exists()
    assert set(store.list()) == {"a", MANIFEST}


def test_a_folder_that_is_being_published_is_left_alone(folder_of_copies, tmp_path):
    store = memory_store()
    store.write(PENDING, Pending(added=("a", "b")).to_json())
    store.write("a", b"1")
    assert not is_taken(store)
    assert set(store.list()) == {"a", PENDING}
    foreign(store)
    with pytest.raises(InUse):
        publish_new(dataclasses.replace(store, files=Renewed(store)), filled(tmp_path / "x", c="1"), Hours().timing())
    assert set(store.list()) == {"a", PENDING, LEASE}


class Renewed:
    """The files of a store whose lease is renewed by somebody else whenever it is looked at."""

    def __init__(self, store):
        self._store, self._beats = store, 0

    def info(self, path):
        if path.endswith(LEASE):
            self._beats += 1
            foreign(self._store, beats=self._beats)
        return self._store.files.info(path)

    def __getattr__(self, name):
        return getattr(self._store.files, name)


def test_damaged_files_do_not_keep_the_rest_of_a_run_from_its_owner(folder_of_copies, tmp_path):
    store, said = memory_store(), []
    publish_new(store, filled(tmp_path / "x", a="1", b="2", c="3"))
    store.write("a", b"x")
    store.remove("b")
    with working(store, said) as folder:
        assert {path.name: path.read_text() for path in folder.path.iterdir()} == {"a": "x", "c": "3"}
    assert sorted(sentence.partition(" is ")[2][:7] for sentence in said) == ["damaged", "missing"]
