"""Learning rates recorded from the originals."""

import json

import numpy as np
import pytest

from starflow_jax.training.step.learning_rate_schedule import LearningRateSchedule


def test_every_recorded_rate(goldens_dir):
    path = goldens_dir / "misc_json" / "cosine_lr.json"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    cases = json.loads(path.read_text())
    assert cases
    for case in cases:
        schedule = LearningRateSchedule(*(case[name] for name in ("total", "warmup", "max_lr", "min_lr", "which")))
        # The originals rise again after the last update; here the rate stays at its minimum.
        recorded = case["optimizer_lr"][: case["total"]]
        assert case["returned"][: case["total"]] == recorded
        updates = range(1, len(recorded) + 1)
        np.testing.assert_allclose([schedule.rate(n) for n in updates], recorded, rtol=1e-12, atol=0)
        traced = [float(schedule(n - 1)) for n in updates]
        np.testing.assert_allclose(traced, recorded, rtol=1e-5, atol=1e-6 * case["max_lr"])
        assert all(schedule.rate(case["total"] + extra) == case["min_lr"] for extra in (1, 2, 3))
