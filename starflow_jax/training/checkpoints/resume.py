"""Selects the checkpoint that a run resumes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starflow_jax.core.choices import ResumePolicy
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.step.train_step import TrainState


def restore_newest(
    checkpoints: Checkpoints,
    like: TrainState,
    loader_at: Callable[[int], Any],
    policy: ResumePolicy,
    say: Callable[[str], None],
    remedy: str | None = None,
) -> tuple[TrainState, Any] | None:
    """The state and the loader of the newest checkpoint, None if there is none.

    Args:
      like, loader_at: as for `Checkpoints.resume`.
      policy: "latest" takes the newest checkpoint only; "latest-good" skips those that cannot be used. These are
        renamed to `STEP.damaged` once a good one is found, so that the run can save the step again.
      say: is called with one sentence for every checkpoint that is skipped.
      remedy: what the user can do about a newest checkpoint that cannot be used, for the error message.

    Raises:
      ValueError: the newest checkpoint, or with "latest-good" every one, cannot be used.
    """
    problems: list[tuple[int, str]] = []
    for step in reversed(checkpoints.steps()):
        try:
            restored = checkpoints.resume(like, loader_at, step)
        except ValueError as error:
            if policy == "latest":
                raise ValueError(str(error) if remedy is None else f"{error}; {remedy}") from error
            problems.append((step, str(error)))
            continue
        for bad, problem in problems:
            say(f"{problem}; skipped, and renamed to {checkpoints.set_aside(bad).name}")
        return restored
    if problems:
        raise ValueError(f"{checkpoints.folder} contains no intact checkpoint; the newest: {problems[0][1]}")
    return None
