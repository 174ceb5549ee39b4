"""Hosts without a common disk publish the parts of a run, and agree on what they continue from."""

import shutil

import pytest
from host_folders import Hosts, names
from storage_faults import contents, filled, memory_store

from starflow_jax.core.storage.manifest import MANIFEST, PART, read_manifest
from starflow_jax.core.storage.parts import read_part
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
    assert set(hosts.store.list()) - set(contents(hosts.store)) == {MANIFEST, f"{PART}1.json"}
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


def test_checkpoints_of_different_values_are_not_put_together():
    one = Held("a", ("checkpoints/5/params/w/zarr.json", "checkpoints/5/params/w/c/0"), {"checkpoints/5/params/w": 2})
    rest = Held("b", ("checkpoints/5/params/w/zarr.json", "checkpoints/5/params/w/c/1"), {"checkpoints/5/params/w": 2})
    assert newest_complete([{5: one}, {5: rest}]) is None
    same = Held("a", rest.names, rest.shards)
    assert newest_complete([{5: one}, from_text(to_text({5: same})), {}]) == (
        5, [list(one.names), ["checkpoints/5/params/w/c/1"], []],
    )  # fmt: skip
