"""Training on stills, then on longer and longer clips: one run, which can stop and resume anywhere."""

import dataclasses

import jax
import numpy as np
import pytest

from starflow_jax.core.config import TrainConfig, load_config
from starflow_jax.training import Snapshot, load_run, train

TINY = load_config(
    "experiments/moving_digits.py:tiny",
    [
        *(f"flow.{name}=20" for name in ("width", "deep_width", "head_dim")),
        "flow.patch_size=8",
        "flow.denoiser=None",
        "sample.denoise=none",
    ],
)
CONFIG = dataclasses.replace(
    TINY,
    train=dataclasses.replace(
        TINY.train,
        curriculum=((2, 1, 6), (3, 2, 4)),
        steps=7,
        batch_size=2,
        warmup=0,
        steps_per_call=2,
        log_every=2,
        checkpoint_every=2,
        sample_every=1,
        keep=10,
    ),
)


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unstopped")
    train(CONFIG, workdir, progress=False)
    return workdir


class _Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
@pytest.mark.slow  # test_training_loop.py resumes a run of one stage
def test_a_run_goes_on_exactly_from_any_stage(unstopped, tmp_path, at):
    """Inside a stage and at its end: the checkpoint holds the position in the data of the next update."""

    def stop(snapshot: Snapshot):
        if snapshot.step == at:
            raise _Stop

    assert train(CONFIG, tmp_path, progress=False, callbacks=[stop]).step == at
    assert train(CONFIG, tmp_path, progress=False).step == 7
    ends = [jax.tree.leaves(load_run(folder)[2]) for folder in (tmp_path, unstopped)]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_stages_say_what_an_update_is_part_of():
    assert [CONFIG.train.stage(step) for step in (0, 1, 2, 4, 5, 6)] == [
        (2, 1, 6),
        (2, 1, 6),
        (5, 2, 4),
        (5, 2, 4),
        (7, None, 2),
        (7, None, 2),
    ]


@pytest.mark.parametrize(
    "stages, sentence",
    [
        (((7, 1, 1),), "curriculum must leave some of steps=7 updates, got stages of 7"),
        (((0, 1, 1),), "curriculum updates must be an integer >= 1, got 0"),
    ],
)
def test_impossible_stages_are_refused(stages, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(steps=7, batch_size=1, lr=1.0, curriculum=stages)


def test_a_stage_cannot_have_more_frames_than_the_clips():
    with pytest.raises(ValueError, match=r"at most data\.frames=4 frames, got 5"):
        dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, curriculum=((1, 5, 1),)))
