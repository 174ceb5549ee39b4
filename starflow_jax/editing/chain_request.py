"""What the draws of chains depend on, by which kept chains are told from those of another request."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.editing.operators import Operator
from starflow_jax.editing.posterior_sampling import ChainOptions
from starflow_jax.editing.request_values import summary
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.training.checkpoints.digests import digest, json_digest


def chain_request(
    run: Run,
    model: Distribution,
    y: np.ndarray,
    operator: Operator,
    cond: Any,
    options: ChainOptions,
    **others: Any,
) -> dict[str, Any]:
    """The names and values, those of JSON, of all that draws depend on.

    A run may lie in another folder, and on other devices. On another kind of machine, or another mesh, continued chains
    are draws of the same posterior, and not those of an uninterrupted call to the last bit. Parameters, which were read
    from files, have checksums; arrays that devices may have computed have sums (`request_values`).

    Args:
      y: float32 [M, ...], the measurements.
      operator: on pixels. Of a function, what it gives for fixed data is compared, and not its text.
      cond: as it was given: labels, captions, text states, "any" or None.
      others: further arguments by name: numbers, those of NumPy and JAX included, and None.
    """
    autoencoder = run.autoencoder
    size = model.shape if autoencoder is None else autoencoder.pixel_shape(model.shape)
    fixed = jax.numpy.asarray(np.random.default_rng(0).standard_normal((1, *size), np.float32))
    with jax.default_matmul_precision("highest"):  # by default, some devices multiply with fewer digits than others
        measured = np.asarray(operator(fixed))
    return {
        "run_step": run.step,
        "parameters": digest(run.params),
        "flow": json_digest(run.config.flow.identity()),
        "noise": [run.config.data.noise, run.config.data.noise_std],
        "solver": repr(model.solver),
        "learned_inverse": None if model.learned is None else digest(model.learned),
        "decoder": None if autoencoder is None else digest(autoencoder.params),
        "y": summary("measurements", y),
        "operator": summary(getattr(operator, "name", type(operator).__name__), measured),
        "cond": _of_condition(cond),
        **{name: _plain(value) for name, value in {**dataclasses.asdict(options), **others}.items()},
    }


def _plain(value: Any) -> Any:
    """A number of NumPy or JAX as one of Python, which JSON has; any other value as it is."""
    return value.item() if hasattr(value, "item") else value


def _of_condition(cond: Any) -> str | dict[str, Any] | None:
    if cond is None or isinstance(cond, str):
        return cond
    if isinstance(cond[0], str):
        return f"{len(cond)} captions {json_digest(list(cond))}"
    values = np.asarray(cond)
    if values.dtype.kind in "iu":
        return f"{len(values)} labels {json_digest(values.tolist())}"
    return summary("text states", values)
