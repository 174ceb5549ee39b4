"""`starflow draw-target`: samples of a trained run with weights for a density in a file of the user's own."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.api.distributions import distribution
from starflow_jax.api.model_condition import condition
from starflow_jax.core.function_files import function_of_file
from starflow_jax.core.request_errors import require
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.targets.importance import WeightedSamples, draw
from starflow_jax.targets.proposals import Target


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """A request for weighted samples.

    Attributes:
      target: FILE.py:FUNCTION, the log-density.
      num: number of samples; batch_size: of them computed at a time.
      label: the class of all samples, of a run with classes; None for none.
      clip: share of the largest weights that are lowered, 0 for none.
      resample: number of points of equal weight that are drawn from the samples; None for the samples with weights.
      seed: of all noise.

    Raises:
      RequestError: a field is out of range.
    """

    target: str
    num: int = 10_000
    batch_size: int = 1000
    label: int | None = None
    clip: float = 0.0
    resample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num", "batch_size"):
            require(getattr(self, name) >= 1, f"{{{name}}} must be at least 1, got {{0}}", getattr(self, name))
        require(0 <= self.clip < 1, "{clip} must be from 0 to below 1, got {0:g}", self.clip)
        require(self.resample is None or self.resample >= 1, "{resample} must be at least 1, got {0}", self.resample)
        require(0 <= self.seed < 2**32, "{seed} must be from 0 to 2**32 - 1, got {0}", self.seed)


def draw_for_target(run: Run, target: Target, request: DrawRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws the samples, and summarises their weights; `target` is the function of `request.target`.

    Returns:
      Arrays, `x` [n, ...] with `log_weight` and `log_q` [n], or `x` alone where they were resampled; and figures: the
      number of samples, the effective sample size, log Z with its two standard errors, and the largest weight.

    Raises:
      RequestError: the run has no such class.
      ValueError: the target is not as `draw` needs it.
    """
    classes = run.config.flow.num_classes
    require(
        request.label is None or 0 <= request.label < classes,
        "{label} must be a class of the run, which has {0}, got {1}",
        classes,
        request.label,
    )
    with warnings.catch_warnings():  # of the choice of a solver, which has no effect on the weights
        warnings.simplefilter("ignore")
        proposal = distribution(run)
    given = None
    if request.label is not None:
        labels = condition(run, [request.label])
        given = None if labels is None else jnp.asarray(labels[0])
    draw_key, resample_key, error_key = jax.random.split(jax.random.key(request.seed), 3)
    drawn = draw(proposal, target, draw_key, request.num, condition=given, batch_size=request.batch_size)
    figures = _figures(drawn, error_key)
    drawn = drawn.clipped(request.clip) if request.clip else drawn
    if request.resample is not None:
        return {"x": np.asarray(drawn.resampled(resample_key, request.resample))}, figures
    names = {"x": drawn.x, "log_weight": drawn.log_weights, "log_q": drawn.log_q}
    return {name: np.asarray(array) for name, array in names.items()}, figures


def _figures(drawn: WeightedSamples, key: jax.Array) -> dict[str, Any]:
    count = len(drawn.log_weights)
    return {
        "num": count,
        "effective_sample_size": float(drawn.effective_sample_size),
        "log_z": float(drawn.log_z),
        "log_z_error": float(drawn.log_z_error),
        "log_z_bootstrap_error": float(drawn.bootstrap_log_z_error(key)),
        "largest_weight": float(jnp.max(drawn.weights)),
    }


def open_target(name: str) -> Target:
    """The function of FILE.py:FUNCTION. The file is the user's own code, and is executed.

    Raises:
      ValueError: there is no such file or function, or executing the file fails.
    """
    target: Target = function_of_file("target", name)
    return target
