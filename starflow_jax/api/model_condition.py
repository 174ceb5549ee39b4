"""What a flow reads as its condition, from class labels and captions."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.training.step.inputs import condition as condition_of_labels

# Labels int [n], captions, or text states [n, L, text_dim].
Condition = Sequence[int] | Sequence[str] | np.ndarray | jax.Array


def condition(run: Run, given: Condition) -> np.ndarray | None:
    """The condition that a flow reads, for `Distribution` and `Flow`.

    Args:
      run: the model.
      given: n captions; or class labels int [n], -1 for none.

    Returns:
      Labels int32 [n], text states float32 [n, L, text_dim], or None for a flow that reads no condition.

    Raises:
      ValueError: a model that reads no captions, an unknown word, or a caption that is too long.
    """
    return given_condition(run, given, len(given))


def given_condition(run: Run, cond: Condition | None, count: int) -> np.ndarray | None:
    """What the flow reads for `count` examples: labels int32 [n], text states float32 [n, L, text_dim], or None."""
    if cond is None:
        cond = [""] * count if run.config.reads_captions else np.full(count, -1, np.int32)
    check(not isinstance(cond, str) and len(cond) == count, f"cond must be one for each of the {count} examples of x")
    if isinstance(cond[0], str):
        return text_states(run.config, [str(text) for text in cond])
    values = np.asarray(cond)
    if values.ndim == 3:
        return values
    states = condition_of_labels(jnp.asarray(values, jnp.int32), run.config.flow)
    return None if states is None else np.asarray(states)
