"""Work of the studio in the background, and who waits for it."""

from __future__ import annotations

import threading
import time

import pytest

from starflow_jax.studio.background_work import Busy, Device, Ended, Outcome, in_background, in_turn


def test_closing_ends_work_in_the_background():
    reached, entered = [], threading.Event()

    def work(report):
        for index in range(1000):
            reached.append(index)
            report(1)
            entered.wait(0.005)
        return "done"

    device = Device()
    steps = in_background(work, device)
    while not next(steps).done:
        pass
    steps.close()
    with device.held():  # which the work held until its end
        assert 0 < len(reached) < 1000
    assert [step.value for step in in_background(lambda report: 5, device) if isinstance(step, Outcome)] == [5]

    def fails(report):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        list(in_background(fails, device))


def test_the_device_is_held_for_one_step_at_a_time():
    device, held, ended = Device(), [], []

    def steps():
        try:
            for index in range(3):
                held.append(device._lock.locked())
                yield index
        finally:
            ended.append(True)

    turns = in_turn(device, steps())
    assert next(turns) == 0 and not device._lock.locked()
    turns.close()
    assert ended == [True] and held == [True]
    assert list(in_turn(device, steps())) == [0, 1, 2]


def test_few_wait_for_stopped_work():
    device, begun, end = Device(), threading.Event(), threading.Event()

    def work(report):
        begun.set()
        end.wait(10)

    def steps():
        yield 1

    stopped = in_background(work, device, seconds=0.01)
    next(stopped)
    begun.wait(10)
    stopped.close()  # and its work goes on
    waiting = in_background(lambda report: 5, device, seconds=0.01)
    next(waiting)
    while device._places._value:  # until its thread has begun to wait
        time.sleep(0.001)
    with pytest.raises(Busy, match="still ending"):
        list(in_turn(device, steps()))
    end.set()
    assert list(waiting)[-1].value == 5
    assert list(in_turn(device, steps())) == [1]


def test_the_end_of_the_studio_ends_its_work():
    device, reached = Device(), []

    def work(report):
        while True:
            reached.append(1)
            report(1)

    steps = in_background(work, device, seconds=0.01)
    while not next(steps).done:
        pass
    assert device.end(10)
    count = len(reached)
    with pytest.raises(Ended):
        list(steps)
    assert len(reached) == count
    with pytest.raises(Busy, match="ending"):
        list(in_background(lambda report: 5, device))


def test_whoever_waits_at_the_end_of_the_studio_is_refused():
    device, refused = Device(), []

    def wait():
        try:
            with device.held():
                refused.append(False)
        except Busy:
            refused.append(True)

    waiting = threading.Thread(target=wait, daemon=True)
    with device.held():
        waiting.start()
        while device._places._value:  # until it has begun to wait
            time.sleep(0.001)
        assert not device.end(0.01)  # the work in progress goes on
    waiting.join(10)
    assert refused == [True] and device.end(10)
