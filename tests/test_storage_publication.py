"""A folder is published whole, and read as one list of files says."""

import json

import pytest
from storage_faults import contents, filled, memory_store

from starflow_jax.core.storage import copies, publication
from starflow_jax.core.storage.copies import fetch_copy, fetch_files
from starflow_jax.core.storage.manifest import MANIFEST, PENDING, Pending, folder_files, read_manifest
from starflow_jax.core.storage.publication import Publication, remove_interrupted
from starflow_jax.core.storage.retries import Retries, StoreError


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


def test_a_file_that_goes_away_while_a_folder_is_listed_is_left_out(tmp_path, monkeypatch):
    """Checkpoints that are not kept are removed while a publication lists the folder."""
    folder = filled(tmp_path / "w", a="1")
    monkeypatch.setattr(publication.os, "walk", lambda path: [(str(path), [], ["a", "gone"])])
    assert set(publication.finished_files(folder)) == {"a"}


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
