"""What the draws of chains depend on, by which chains that are kept are told from those of another request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.editing.operators import Operator
from starflow_jax.editing.posterior_sampling import ChainOptions
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.training.checkpoints.digests import digest, json_digest


def chain_request(
    run: Run,
    model: Distribution,
    y: np.ndarray,
    operator: Operator,
    cond: Any,
    options: ChainOptions,
    **others: int | float | None,
) -> dict[str, Any]:
    """The names and values, those of JSON, of all that draws depend on; of arrays and of parameters, checksums.

    A run may lie in another folder, and on other devices. On another kind of machine, or another mesh, continued chains
    are draws of the same posterior, and not those of an uninterrupted call to the last bit.

    Args:
      y: float32 [M, ...], the measurements.
      operator: on pixels. Of a function, what it gives for fixed data is compared, and not its text.
      cond: as it was given: labels, captions, text states, "any" or None.
      others: further arguments by name.
    """
    autoencoder = run.autoencoder
    size = model.shape if autoencoder is None else autoencoder.pixel_shape(model.shape)
    measured = operator(jax.numpy.asarray(np.random.default_rng(0).standard_normal((1, *size), np.float32)))
    return {
        "run_step": run.step,
        "parameters": digest(run.params),
        "flow": json_digest(run.config.flow.identity()),
        "noise": [run.config.data.noise, run.config.data.noise_std],
        "solver": repr(model.solver),
        "learned_inverse": None if model.learned is None else digest(model.learned),
        "decoder": None if autoencoder is None else digest(autoencoder.params),
        "y": f"{list(y.shape)} {_checksum(y)}",
        "operator": f"{getattr(operator, 'name', type(operator).__name__)} {_checksum(np.asarray(measured))}",
        "cond": _of_condition(cond),
        **dataclasses.asdict(options),
        **others,
    }


def _of_condition(cond: Any) -> str | None:
    if cond is None or isinstance(cond, str):
        return cond
    if isinstance(cond[0], str):
        return f"{len(cond)} captions {json_digest(list(cond))}"
    values = np.asarray(cond)
    values = values.astype(np.int32) if values.dtype.kind in "iu" else values
    return f"{list(values.shape)} {_checksum(values)}"


def _checksum(values: np.ndarray) -> str:
    """Eight digits of an array."""
    header = json.dumps([values.dtype.str, list(values.shape)]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(values).tobytes()).hexdigest()[:8]
