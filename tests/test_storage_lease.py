"""One process at a time owns an address."""

import dataclasses
import json
import threading
import time

import pytest
from storage_faults import Faulty, Hours, filled, foreign, memory_store

from starflow_jax.core.storage.lease import InUse, Lease, Timing
from starflow_jax.core.storage.manifest import LEASE, PENDING
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.retries import Retries, StoreError


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
