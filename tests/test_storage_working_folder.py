"""A local folder is published while a command works in it, and continued where nobody published since."""

import dataclasses
import time

import pytest
from storage_faults import Hours, Renewed, contents, filled, foreign, memory_store

from starflow_jax.core.storage.lease import InUse, Timing
from starflow_jax.core.storage.manifest import LEASE, MANIFEST, PENDING, Pending, read_manifest
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.retries import Retries, StoreError
from starflow_jax.core.storage.working_folder import WorkingFolder, is_taken, publish_new


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


def test_damaged_files_do_not_keep_the_rest_of_a_run_from_its_owner(folder_of_copies, tmp_path):
    store, said = memory_store(), []
    publish_new(store, filled(tmp_path / "x", a="1", b="2", c="3"))
    store.write("a", b"x")
    store.remove("b")
    with working(store, said) as folder:
        assert {path.name: path.read_text() for path in folder.path.iterdir()} == {"a": "x", "c": "3"}
    assert sorted(sentence.partition(" is ")[2][:7] for sentence in said) == ["damaged", "missing"]
