"""Checks that a resumed run reads the same data as before, since a position is valid in the same data only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint, difference, from_values, to_values
from starflow_jax.training.checkpoints.parts import Unusable, read_digests, read_json, steps_in
from starflow_jax.training.distributed.agreement import gather_texts

# Name of the part of a checkpoint; checkpoints of early versions have none.
DATA = "data"


def check_same_data(
    checkpoints: Path, old: ExperimentConfig, config: ExperimentConfig, now: Sequence[SourceFingerprint]
) -> None:
    """Raises ValueError unless the data are those that the newest checkpoint was saved with.

    Args:
      checkpoints: their folder; old: configuration of the run so far; config: of the resumed run.
      now: fingerprint of the data.
    """
    steps = steps_in(checkpoints)
    saved = _newest(checkpoints, steps)
    if saved is None:  # the data are unknown, so their paths must be the same
        before, after = _paths(old.data), _paths(config.data)
        if steps and before != after:
            raise ValueError(
                f"{checkpoints.parent} contains checkpoints without a record of their data, so data.path must still be "
                f"{', '.join(before)}, got {', '.join(after)}"
            )
        return
    step, then = saved
    if (changed := difference(then, now)) is not None:
        source, old_content, new_content = changed
        where = f"data.path {config.data.path}" if config.data.path else f"data.source {config.data.source!r}"
        if len(now) > 1 and source:
            where += f" ({source})"
        raise ValueError(
            f"{where} contained {old_content} when checkpoint {step} of {checkpoints.parent} was saved and contains "
            f"{new_content} now"
        )


def same_everywhere(here: tuple[SourceFingerprint, ...]) -> tuple[SourceFingerprint, ...]:
    """Checks that all processes have computed the same fingerprint of their data, and returns it. A collective.

    Raises:
      ValueError: on all processes if the fingerprints differ; the message names the source.
    """
    fingerprints = [from_values(json.loads(text)) for text in gather_texts(json.dumps(to_values(here)))]
    for process, other in enumerate(fingerprints):
        if (changed := difference(fingerprints[0], other)) is not None:
            source, first, differing = changed
            raise ValueError(
                f"data must be the same on all processes: {source or 'they'} contained {first} on process 0 and "
                f"{differing} "
                f"on process {process}"
            )
    return here


def _newest(checkpoints: Path, steps: Sequence[int]) -> tuple[int, tuple[SourceFingerprint, ...]] | None:
    """The newest checkpoint with a fingerprint of its data: its step and the fingerprint."""
    for step in reversed(steps):
        folder = checkpoints / str(step)
        with contextlib.suppress(Unusable, ValueError):  # reported when it is restored
            digests = read_digests(folder)
            if DATA in digests:
                return step, from_values(read_json(folder, DATA, digests))
    return None


def _paths(data: DataConfig) -> list[str]:
    return [part.path for part in (data, *data.mixture) if part.path is not None]
