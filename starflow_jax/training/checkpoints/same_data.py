"""Whether a run that goes on reads what it has read so far: a place in the data means nothing in other data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.data.pipeline.fingerprint import Held, difference, from_values, to_values
from starflow_jax.training.checkpoints.parts import Unusable, read_digests, read_json, steps_in
from starflow_jax.training.distributed.agreement import all_texts

# The part of a checkpoint; those of before have none.
DATA = "data"


def check_same_data(checkpoints: Path, old: ExperimentConfig, config: ExperimentConfig, now: Sequence[Held]) -> None:
    """Raises ValueError, in a sentence, unless the data are those that the newest checkpoint was saved with.

    Args:
      checkpoints: their folder; old: the configuration of the run so far; config: of what goes on.
      now: what the sources hold.
    """
    steps = steps_in(checkpoints)
    saved = _newest(checkpoints, steps)
    if saved is None:  # what it was is not known, so it must lie where it lay
        there, here = _paths(old.data), _paths(config.data)
        if steps and there != here:
            raise ValueError(
                f"{checkpoints.parent} holds checkpoints that do not say what their data held, so data.path must be "
                f"{', '.join(there)} as before, got {', '.join(here)}"
            )
        return
    step, then = saved
    if (changed := difference(then, now)) is not None:
        source, held, holds = changed
        where = f"data.path {config.data.path}" if config.data.path else f"data.source {config.data.source!r}"
        if len(now) > 1 and source:
            where += f" ({source})"
        raise ValueError(
            f"{where} held {held} when checkpoint {step} of {checkpoints.parent} was saved and holds {holds} now"
        )


def same_everywhere(here: tuple[Held, ...]) -> tuple[Held, ...]:
    """What the sources hold, which every process has looked up itself, if all have found the same.

    A list of files that the first process shared would name files that another does not have.

    Raises:
      ValueError: they have not, on all of them: a sentence that names the source.
    """
    found = [from_values(json.loads(text)) for text in all_texts(json.dumps(to_values(here)))]
    for process, there in enumerate(found):
        if (changed := difference(found[0], there)) is not None:
            source, first, other = changed
            raise ValueError(
                f"data must be the same on all processes: {source or 'they'} held {first} on process 0 and {other} on "
                f"process {process}"
            )
    return here


def _newest(checkpoints: Path, steps: Sequence[int]) -> tuple[int, tuple[Held, ...]] | None:
    """Step and data of the newest checkpoint that says what they were."""
    for step in reversed(steps):
        folder = checkpoints / str(step)
        with contextlib.suppress(Unusable, ValueError):  # said where it is restored
            digests = read_digests(folder)
            if DATA in digests:
                return step, from_values(read_json(folder, DATA, digests))
    return None


def _paths(data: DataConfig) -> list[str]:
    return [part.path for part in (data, *data.mixture) if part.path is not None]
