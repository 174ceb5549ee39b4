"""The pipelined inverse: the numbers of `inverse`, frame by frame, without compiling anything twice."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.flows import Guidance
from starflow_jax.flows.parameters import split
from starflow_jax.solvers import Jacobi, Sequential, SlidingJacobi, SlidingWindow, inverse
from starflow_jax.solvers.streaming.pipeline import FrameStream
from starflow_jax.solvers.streaming.read_ahead import Ahead

SHAPE = (2, 6, 2, 2, 2)
TEXT, NULL = normal((2, 3, 6), 3), normal((1, 3, 6), 4)
FLOW = random_flow(VIDEO)
PARAMS = split(FLOW)[1]


@pytest.fixture
def compilations():
    """A list that grows by one with every compiled program."""
    seen = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def frames_of(stream, z, prefix=None):
    """Number -> new frame."""
    groups = stream.run(z, prefix, lambda first, frames: (first, frames))
    return {first + i: np.asarray(frame) for first, frames in groups for i, frame in enumerate(frames)}


@pytest.mark.parametrize(
    "solver, given, window",
    [
        (Sequential(), 0, None),
        pytest.param(
            Jacobi(block=4, growth=3, tolerance=1e-5, per_sample=True), 0, SlidingWindow(3, 1), marks=pytest.mark.slow
        ),
        # One given frame: the first stage ends inside a frame, and hands on none.
        pytest.param(Jacobi(block=3, growth=2, tolerance=1e-5, per_sample=True), 1, None, marks=pytest.mark.slow),
        (SlidingJacobi(tolerance=1e-6), 2, SlidingWindow(3, 1)),
    ],
)
def test_the_stream_is_the_inverse(solver, given, window, compilations):
    """The deep block bit for bit where one program's fusions are the other's, else to the last place; the frames up to
    rounding, and up to the tolerance where frames of a batch stop together."""
    z, guidance = normal(SHAPE), Guidance(1.5, NULL)
    prefix = normal((2, given, 2, 2, 2), 5) if given else None
    batch = jax.jit(
        lambda flow, z: inverse(flow, z, TEXT, solver=solver, guidance=guidance, prefix=prefix, window=window)
    )
    exact = batch(FLOW, z)
    options = {"given": given, "solver": solver, "guidance": guidance, "window": window}
    stream = FrameStream(PARAMS, VIDEO, SHAPE, TEXT, **options)
    stream.compile()
    deep = FLOW.tokens_of(exact.states[1])
    for first, count, tokens in stream._deep_pieces(z, prefix):
        np.testing.assert_allclose(
            tokens[:, :count],
            deep[:, first : first + count],
            rtol=0,
            atol=0.0 if isinstance(solver, Sequential) else 1e-6,
        )
    frames = frames_of(stream, z, prefix)
    assert list(frames) == list(range(given, SHAPE[1]))
    drawn = np.stack(list(frames.values()), axis=1)
    np.testing.assert_allclose(drawn, exact.x[:, given:], atol=5e-4 if isinstance(solver, SlidingJacobi) else 1e-5)
    names = ("starts", "lengths", "converged")
    # A last place of a given frame may decide whether one more iteration is needed.
    for name in names if given else (*names, "evaluations", "iterations"):
        np.testing.assert_array_equal(getattr(stream.reports[0], name), getattr(exact.reports[0], name))
    assert [report.block for report in stream.reports] == [2, 1, 0]
    if window is None and given == 0:
        count = len(compilations)
        again = FrameStream(PARAMS, VIDEO, SHAPE, 2.0 * TEXT, **options)
        again.compile()
        other = frames_of(again, 0.5 * z)
        assert len(other) == SHAPE[1] and not np.allclose(other[0], frames[0])
        # The two products above are no part of a stream.
        assert len(compilations) <= count + 2


def test_programs_do_not_grow_with_the_number_of_windows(compilations):
    """A longer video in more windows of one kind adds none but those that handle the whole noise."""
    solver, window = Jacobi(block=4, growth=1), SlidingWindow(3, 1)

    def programs(frames):
        shape = (2, frames, 2, 2, 2)
        z = normal(shape)
        before = len(compilations)
        stream = FrameStream(PARAMS, VIDEO, shape, TEXT, solver=solver, window=window)
        assert len(frames_of(stream, z)) == frames
        return len(compilations) - before

    programs(7)
    # The order of the noise, and the two beginnings, which take their part of it.
    assert programs(9) <= 3


@pytest.mark.parametrize(
    "config, shape, options, sentence",
    [
        (dataclasses.replace(VIDEO, shallow_local=False), SHAPE, {}, "shallow_local=True: block 0 spans frames"),
        (
            dataclasses.replace(VIDEO, temporal_causal=False, num_blocks=2, order="R2L"),
            SHAPE,
            {},
            "temporal_causal=True: block 1",
        ),
        (dataclasses.replace(VIDEO, layers_per_block=(1, 1, 0)), SHAPE, {}, "a deep block with layers"),
        (VIDEO, SHAPE, {"given": 6}, "0 to 5, got 6"),
        (VIDEO, SHAPE, {"given": 3, "window": SlidingWindow(3)}, "0 to 2, got 3"),
        (VIDEO, SHAPE, {"devices": []}, "one or two, got 0"),
        (IMAGE, (2, 4, 4, 2), {}, "a video z"),
        (CLASSES, (2, 4, 4, 1), {}, "a video z"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_a_sentence(config, shape, options, sentence):
    # No parameters are needed to find out.
    params = {"blocks": {str(i): {} for i in range(config.num_blocks)}}
    with pytest.raises(ValueError, match=sentence) as error:
        FrameStream(params, config, shape, TEXT if config.text_dim else None, **options)
    assert "\n" not in str(error.value)


def test_running_ahead_stops_where_it_is_told_to():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    ahead = Ahead(items(), 2)
    reader = iter(ahead)
    assert [next(reader), next(reader)] == [0, 1]
    ahead.allow()
    assert next(reader) == 2
    ahead.close()
    assert made == [0, 1, 2]


def test_an_error_ahead_reaches_the_reader():
    def items():
        yield 1
        raise RuntimeError("broken")

    ahead = Ahead(items(), 5)
    with pytest.raises(RuntimeError, match="broken"):
        list(ahead)
    ahead.close()


_TWO_DEVICES = """
import threading, time
import jax, numpy as np
from random_flows import VIDEO, normal, random_flow
from starflow_jax.flows.parameters import split
from starflow_jax.solvers import inverse
from starflow_jax.solvers.streaming.pipeline import FrameStream

shape, text = (2, 6, 2, 2, 2), normal((2, 3, 6), 3)
flow, z = random_flow(VIDEO), normal((2, 6, 2, 2, 2))
deep, shallow = jax.devices()
stream = FrameStream(split(flow)[1], VIDEO, shape, text, devices=(deep, shallow))
stream.compile()
places = [a.devices() for a in jax.tree.leaves((stream._deep_params, stream._deep_inputs))]
assert places and all(p == {deep} for p in places)
places = [a.devices() for a in jax.tree.leaves((stream.shallow_params, stream._shallow_inputs))]
assert places and all(p == {shallow} for p in places)

opened, log = threading.Event(), []

def wait(x):
    opened.wait(100)
    return x

# The second device is kept busy until the first one has finished three stages.
busy = jax.jit(lambda x: jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x))

def watch():
    for _ in range(4000):
        stages = list(stream._stages)
        done = sum(report.evaluations.is_ready() for _, report in stages)
        if done >= 3:
            log.append(done)
            assert all(report.evaluations.devices() == {deep} for _, report in stages)
            break
        time.sleep(0.02)
    opened.set()

threading.Thread(target=watch, daemon=True).start()
frames = []
for first, group in stream.run(z, None, lambda first, group: (first, [busy(frame) for frame in group])):
    assert all(frame.devices() == {shallow} for frame in group)
    frames += group
assert log, "the deep block waited for the second device"
np.testing.assert_allclose(np.stack(frames, axis=1), jax.jit(inverse)(flow, z, text).x, atol=1e-5)
print("two devices at once")
"""


@pytest.mark.slow
def test_two_devices_work_at_once():
    """The deep block finishes stages on one device while the other is kept from finishing the first frame."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    here = Path(__file__).parent
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here)}
    run = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES], capture_output=True, text=True, timeout=600, env=environment, cwd=here
    )
    assert run.returncode == 0, run.stderr
    assert "two devices at once" in run.stdout
