"""Hosts without a common disk publish the parts of a run, and agree on what they continue from."""

import os
import shutil
import time

import pytest
from host_folders import Hosts, names
from storage_faults import contents, filled, memory_store

from starflow_jax.core.storage.manifest import MANIFEST, read_manifest
from starflow_jax.core.storage.parts import read_part
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.training.hosts import host_folder
from starflow_jax.training.hosts.agreed_step import Held, from_text, newest_complete, to_text


@pytest.fixture
def hosts(monkeypatch, tmp_path):
    monkeypatch.setenv("STARFLOW_STORAGE_SECONDS", "3600")  # published on demand only
    with Hosts(monkeypatch, memory_store(), tmp_path) as started:
        yield started


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_a_checkpoint_is_listed_when_all_hosts_have_published_their_parts(hosts):
    first, second = hosts.start()
    filled(first, **{"config.json": "{}"})
    hosts.save(5)
    hosts.folders[0].publish()
    assert set(contents(hosts.store)) == {"config.json"}
    hosts.folders[1].publish()
    assert set(contents(hosts.store)) == {"config.json"}  # uploaded, and not listed yet
    hosts.folders[0].publish()
    assert set(contents(hosts.store)) == {"config.json", *names(5)}
    assert contents(hosts.store)["checkpoints/5/params/w/c/3"] == "5 3"
    # The older step goes when the newer one is whole in the store, and not before.
    shutil.rmtree(first / "checkpoints/5")
    hosts.save(6, write=[0])
    hosts.folders[0].publish()
    assert set(contents(hosts.store)) == {"config.json", *names(5)}
    shutil.rmtree(second / "checkpoints/5")
    hosts.save(6, write=[1])
    filled(second, **{"hangs/process-1.txt": "stacks"})
    hosts.finish()
    assert set(contents(hosts.store)) == {"config.json", "hangs/process-1.txt", *names(6)}
    assert set(hosts.store.list()) - set(contents(hosts.store)) == {MANIFEST}
    assert not first.exists() and not second.exists() and not hosts.said


def test_new_hosts_begin_with_what_the_store_has_and_read_shards_on_demand(hosts, tmp_path):
    hosts.start()
    filled(hosts.folders[0].path, **{"config.json": "{}", "x.png": "x"})
    hosts.save(5)
    hosts.finish()
    shutil.rmtree(tmp_path / "disk-1")
    first, second = hosts.start()
    assert steps(first) == steps(second) == ["5"]
    assert (first / "x.png").exists() and (second / "config.json").exists() and not (second / "x.png").exists()
    shard = "checkpoints/5/params/w/c/1"
    assert not (second / shard).exists() and (second / "checkpoints/5/params/w/zarr.json").exists()
    hosts.folders[1].fetch([shard, "checkpoints/5/params/w/c/9"])
    assert (second / shard).read_text() == "5 1"
    hosts.save(6)
    hosts.finish()
    assert set(contents(hosts.store)) == {"config.json", "x.png", *names(5), *names(6)}


def test_killed_hosts_continue_from_their_disks_where_nobody_has_published_since(hosts):
    hosts.start()
    filled(hosts.folders[0].path, **{"config.json": "{}"})
    hosts.save(5)
    hosts.save(6)
    hosts.save(7, write=[0])  # the other host was killed before it was complete
    hosts.kill()
    assert set(contents(hosts.store)) == set()
    first, second = hosts.start()
    assert steps(first) == steps(second) == ["6"]
    assert set(contents(hosts.store)) == {"config.json", *names(6)}
    assert (second / "checkpoints/6/params/w/c/3").exists()  # not read again


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_lost_its_disk_gets_what_the_others_have(hosts, tmp_path, lost):
    hosts.start()
    both = [range(4), range(4)]  # replicas
    hosts.save(5, shards=both)
    hosts.together(lambda index: index or hosts.folders[1].publish())
    hosts.folders[0].publish()
    hosts.save(6, shards=both)
    hosts.kill()
    assert names(6) & set(contents(hosts.store)) == set()
    shutil.rmtree(tmp_path / f"disk-{lost}")
    paths = hosts.start()
    assert steps(paths[0]) == steps(paths[1]) == ["5", "6"]
    assert names(6) <= set(contents(hosts.store))
    hosts.folders[lost].fetch([f"checkpoints/6/params/w/c/{shard}" for shard in range(4)])
    assert (paths[lost] / "checkpoints/6/params/w/c/2").read_text() == "6 2"


def test_shards_that_only_the_lost_disk_held_make_all_hosts_fall_back_to_the_store(hosts, tmp_path):
    hosts.start()
    hosts.save(5)
    hosts.folders[1].publish()
    hosts.folders[0].publish()
    hosts.save(6)
    hosts.folders[1].publish()  # in vain: the first host is killed before it lists them
    hosts.kill()
    shutil.rmtree(tmp_path / "disk-0")
    first, second = hosts.start()
    assert steps(first) == steps(second) == ["5"]
    assert set(contents(hosts.store)) == names(5)
    assert not names(6) & set(hosts.store.list())  # nothing of it is left


def test_disks_give_way_to_what_another_command_has_published_since(hosts, monkeypatch, tmp_path):
    hosts.start()
    hosts.save(5)
    hosts.kill()
    with Hosts(monkeypatch, hosts.store, tmp_path / "others") as others:
        others.start()
        others.save(4)
        others.finish()
    first, second = hosts.start()
    assert steps(first) == steps(second) == ["4"]


def test_a_process_stops_writing_when_another_command_owns_the_address(hosts):
    hosts.start()
    hosts.save(5)
    hosts.folders[0]._stack.close()  # the lease is released
    hosts.folders[1]._may_write.__self__._seen = -1e9  # ten seconds later
    with pytest.raises(OSError, match="is no longer owned by the first process; nothing more is written"):
        hosts.folders[1].publish()
    assert read_part(hosts.store, 1) is None and read_manifest(hosts.store).files == {}


def test_a_step_that_was_set_aside_is_published_when_it_is_saved_again(hosts):
    hosts.start()
    hosts.save(5)
    hosts.finish()
    paths = hosts.start()
    for path in paths:
        (path / "checkpoints/5").rename(path / "checkpoints/5.damaged")
    hosts.together(lambda index: hosts.folders[index].set_aside(5))
    assert not names(5) & set(contents(hosts.store))
    hosts.save(5)
    hosts.finish()
    assert names(5) <= set(contents(hosts.store))


def test_a_step_from_disks_that_was_set_aside_is_listed_with_the_objects_of_its_second_save(hosts):
    hosts.start()
    hosts.save(5)
    hosts.kill()
    paths = hosts.start()  # publishes what the disks hold
    assert names(5) <= set(contents(hosts.store))
    for path in paths:
        (path / "checkpoints/5").rename(path / "checkpoints/5.damaged")
    hosts.together(lambda index: hosts.folders[index].set_aside(5))
    hosts.save(5)
    hosts.folders[0].publish()
    assert not names(5) & set(contents(hosts.store))  # the objects of the other host are not written again yet
    hosts.finish()
    assert names(5) <= set(contents(hosts.store))


def test_a_step_is_listed_that_the_disks_have_no_more(hosts):
    paths = hosts.start()
    hosts.save(5)
    hosts.folders[0].publish()  # both upload at the same moment, and the first has seen nothing of the other
    hosts.folders[1].publish()
    hosts.save(6)
    for path in paths:
        shutil.rmtree(path / "checkpoints/5")
    hosts.folders[0].publish()
    assert set(contents(hosts.store)) == names(5)
    hosts.folders[1].publish()
    hosts.folders[0].publish()
    assert set(contents(hosts.store)) == names(6)
    assert not names(5) & set(hosts.store.list())


def test_the_first_process_lists_between_its_turns_what_the_others_have_uploaded(hosts, monkeypatch):
    monkeypatch.setattr(host_folder, "_POLL_SECONDS", 0.05)
    hosts.start()
    hosts.save(5)
    hosts.folders[0].publish()
    hosts.folders[1].publish()
    for _ in range(100):
        if names(5) <= set(contents(hosts.store)):
            return
        time.sleep(0.05)
    raise AssertionError("the next turn is in an hour, and the step is not listed")


def test_a_step_that_is_removed_while_it_is_linked_is_not_listed_in_part(hosts, monkeypatch):
    first, _ = hosts.start()
    hosts.save(5)
    hosts.folders[1].publish()
    link, gone = os.link, first / "checkpoints/5/params/w/c/1"

    def linked(source, target):
        if source == gone:
            raise FileNotFoundError(source)
        link(source, target)

    monkeypatch.setattr(os, "link", linked)
    hosts.folders[0].publish()
    assert not names(5) & set(contents(hosts.store))


def test_a_step_whose_removal_has_begun_is_not_listed_in_part(hosts, monkeypatch):
    first, _ = hosts.start()
    hosts.save(5)
    hosts.folders[1].publish()
    (first / "checkpoints/5/digests/metadata").unlink()
    link = os.link

    def linked(source, target):
        link(source, target)
        if source == first / "checkpoints/5/params/w/c/1":
            shutil.rmtree(first / "checkpoints/5")

    monkeypatch.setattr(os, "link", linked)
    hosts.folders[0].publish()
    assert not names(5) & set(contents(hosts.store))


def test_local_folders_stay_where_the_newest_checkpoint_is_not_listed(hosts):
    paths = hosts.start()
    hosts.save(5)
    hosts.save(6, write=[0])  # the other host could not write it
    with pytest.raises(StoreError, match=r"does not list the newest .* step 6, .*; the local copies") as refused:
        hosts.finish()
    assert refused.value.transient  # exit code 75
    assert names(5) == set(contents(hosts.store))
    assert steps(paths[0]) == ["5", "6"] and steps(paths[1]) == ["5"]


def test_objects_that_were_uploaded_in_vain_go_when_a_newer_step_is_listed(hosts):
    _, second = hosts.start()
    hosts.save(5, write=[1])
    hosts.folders[1].publish()
    shutil.rmtree(second / "checkpoints/5")
    hosts.save(6)
    hosts.folders[1].publish()
    assert names(5) & set(hosts.store.list())
    hosts.folders[0].publish()
    assert names(6) == set(contents(hosts.store)) and not names(5) & set(hosts.store.list())


def test_checkpoints_of_different_values_are_not_put_together():
    one = Held("a", ("checkpoints/5/params/w/zarr.json", "checkpoints/5/params/w/c/0"), {"checkpoints/5/params/w": 2})
    rest = Held("b", ("checkpoints/5/params/w/zarr.json", "checkpoints/5/params/w/c/1"), {"checkpoints/5/params/w": 2})
    assert newest_complete([{5: one}, {5: rest}]) is None
    same = Held("a", rest.names, rest.shards)
    assert newest_complete([{5: one}, from_text(to_text({5: same})), {}]) == (
        5, [list(one.names), ["checkpoints/5/params/w/c/1"], []],
    )  # fmt: skip
