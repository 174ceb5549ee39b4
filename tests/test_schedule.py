"""Properties of the learning rate; agreement with the originals is in parity/test_schedules.py."""

import jax
import numpy as np
import pytest

from starflow_jax.training.schedule import CosineSchedule


@pytest.mark.parametrize("family", ["tarflow", "starflow"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
def test_traced_and_exact_rates_agree(family, warmup):
    schedule = CosineSchedule(total=20, warmup=warmup, max_lr=1e-3, min_lr=1e-5, family=family)
    exact = [schedule.rate(update) for update in range(1, 31)]
    traced = jax.jit(schedule)(np.arange(30))
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, exact, rtol=2e-5)


def test_the_rate_stays_at_the_minimum_after_the_last_update():
    schedule = CosineSchedule(total=10, warmup=2, max_lr=1.0, min_lr=0.1)
    assert [schedule.rate(update) for update in (10, 11, 99)] == [0.1] * 3


def test_a_warm_up_over_the_whole_run_reaches_the_maximum():
    schedule = CosineSchedule(total=10, warmup=10, max_lr=1.0, min_lr=0.0)
    assert schedule.rate(10) == 1.0
    assert float(schedule(9)) == 1.0


def test_starflow_may_start_below_its_minimum():
    schedule = CosineSchedule(total=1000, warmup=100, max_lr=1e-4, min_lr=1e-5, family="starflow")
    assert schedule.start_lr == 1e-6
    assert schedule.rate(1) < schedule.min_lr < schedule.rate(100) == 1e-4


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"warmup": 11}, "warmup must be at most total=10, got 11"),
        ({"total": 0}, "total must be an integer >= 1, got 0"),
        ({"max_lr": float("nan")}, "max_lr must be a finite number"),
        ({"family": "glow"}, "family must be one of"),
    ],
)
def test_bad_fields_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        CosineSchedule(**({"total": 10, "warmup": 2, "max_lr": 1.0, "min_lr": 0.0} | fields))
