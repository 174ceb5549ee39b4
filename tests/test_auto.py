"""Choosing solvers from a calibration with arbitrary numbers."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starflow_jax.solvers import AffineStart, Jacobi, Secant, Sequential, SlidingJacobi, reads_estimates
from starflow_jax.solvers.automatic.block_solver_choice import auto, choices
from starflow_jax.solvers.automatic.calibration import BlockCalibration, Calibration, Cost, Method, Trial

SEQUENTIAL = Trial(Method("sequential", 1), 0.0, 64, 0.0, 0.064)


def calibration(*trials, samples=4, costs=(), amplification=2.0, blocks=2):
    found = tuple(
        BlockCalibration(
            block=place, tokens=64, crm=1.0 + place, starts=(), mean=(0.5,), scale=(2.0,),
            amplification=amplification, trials=(SEQUENTIAL, *trials), costs=tuple(costs),
        )
        for place in range(blocks)
    )  # fmt: skip
    return Calibration(
        step=1, device="cpu", shape=(8, 8, 1), samples=samples, guidance=0.0, target_error=1e-3, num_blocks=blocks + 1,
        blocks=found,
    )  # fmt: skip


def trial(solver, window, depth, error, seconds, start="affine", tolerance=1e-6):
    lags = (1, 8) if solver == "secant" else ()
    return Trial(Method(solver, window, start, lags), tolerance, depth, error, seconds)


def test_the_estimates_of_a_learned_inverse_are_chosen_where_they_save_depth():
    found = calibration(
        trial("jacobi", 64, 8, 1e-4, 0.5), trial("sliding", 64, 3, 1e-4, 0.2, start="learned", tolerance=1e-5)
    )
    chosen = auto(found, objective="depth")
    assert chosen.solvers[0] == SlidingJacobi(64, 1e-5, "learned") and reads_estimates(chosen)
    assert not reads_estimates(auto(found, objective="time"))


def test_time_and_depth_may_want_different_solvers():
    """An equal share of the target for each of two blocks, whose errors double: 2.5e-4 is allowed."""
    found = calibration(
        trial("jacobi", 64, 8, 1e-4, 0.5),
        trial("jacobi", 64, 5, 1e-2, 0.01),  # misses the target
        trial("secant", 64, 6, 1e-4, 0.7),
        trial("sliding", 16, 20, 2e-4, 0.02, tolerance=1e-3),
    )
    assert auto(found, batch=4).solvers == (
        *[SlidingJacobi(16, 1e-3, AffineStart((0.5,), (2.0,)))] * 2,
        Sequential(),  # an identity block's, never used
    )
    deep = auto(found, batch=4, objective="depth").solvers[0]
    assert isinstance(deep, Secant) and deep.block is None and deep.lags == (1, 8)
    loose = auto(found, batch=4, target_error=0.1).solvers[0]
    assert isinstance(loose, Jacobi) and loose.block is None
    assert all(choice.trial == SEQUENTIAL for choice in choices(found, batch=4, target_error=1e-7))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1e-8, 1.0), st.floats(1e-6, 1.0)), max_size=5),
    st.integers(1, 64),
    st.floats(1e-5, 1e-1),
)
def test_never_predicted_to_be_slower_or_deeper_than_sequential(numbers, batch, target):
    costs = [Cost(1, 1, 0.001), Cost(1, 4, 0.001), Cost(64, 1, 0.002), Cost(64, 4, 0.008)]
    found = calibration(*(trial("jacobi", 64, *each) for each in numbers), costs=costs)
    for choice in choices(found, batch=batch, target_error=target):
        assert choice.seconds <= choice.sequential_seconds
        assert choice.trial.error * 2 * 2 <= target * (1 + 1e-9)
    for choice in choices(found, batch=batch, objective="depth", target_error=target):
        assert choice.trial.depth <= SEQUENTIAL.depth


def test_a_batch_that_makes_iterating_dear_goes_back_to_sequential():
    """A sequential evaluation costs the same at any batch here, one of the window grows with it."""
    costs = [Cost(1, 1, 0.001), Cost(1, 4, 0.001), Cost(64, 1, 0.002), Cost(64, 4, 0.008)]
    found = calibration(trial("jacobi", 64, 4, 1e-5, 0.032), costs=costs)
    one, four, sixteen = (choices(found, batch=batch)[0] for batch in (1, 4, 16))
    assert one.seconds == pytest.approx(0.008) and four.seconds == pytest.approx(0.032)
    assert one.trial.method.solver == four.trial.method.solver == "jacobi"
    assert sixteen.trial == SEQUENTIAL and sixteen.sequential_seconds == pytest.approx(0.064)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 0}, "batch must be an integer >= 1, got 0"),
        ({"objective": "beauty"}, "objective must be one of 'time', 'depth', got 'beauty'"),
        ({"target_error": float("nan")}, "target_error must be a finite number"),
    ],
)
def test_what_is_refused(arguments, sentence, shapes_unchecked):
    with pytest.raises(ValueError, match=sentence):
        auto(calibration(), **arguments)


def test_a_calibration_needs_the_sequential_trial():
    with pytest.raises(ValueError, match="one trial of the sequential solver, got 0"):
        dataclasses.replace(calibration().blocks[0], trials=(trial("jacobi", 64, 8, 1e-4, 0.5),))
