"""Edits of data by way of its noise: interpolation, and another class or caption."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from starflow_jax.api.distributions import distribution
from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.api.model_condition import Condition, given_condition
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.sampling.loaded_run import Run


def spherical(
    first: Float[np.ndarray, "B *size"], second: Float[np.ndarray, "B *size"], shares: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "B n *size"]:
    """Points on the great circle from `first` to `second` (Shoemake 1985), with lengths between theirs.

    Standard normal noise of many dimensions lies near a sphere, which a straight line between two points leaves.
    """
    ends = [np.asarray(end, np.float64).reshape(len(end), 1, -1) for end in (first, second)]
    norms = [np.maximum(np.linalg.norm(end, axis=-1, keepdims=True), 1e-12) for end in ends]
    units = [end / norm for end, norm in zip(ends, norms, strict=True)]
    angle = np.arccos(np.clip(np.sum(units[0] * units[1], axis=-1, keepdims=True), -1.0, 1.0))
    t = np.asarray(shares, np.float64)[None, :, None]
    sine = np.sin(angle)
    parallel = sine < 1e-6
    safe = np.where(parallel, 1.0, sine)
    weights = (
        np.where(parallel, 1.0 - t, np.sin((1.0 - t) * angle) / safe),
        np.where(parallel, t, np.sin(t * angle) / safe),
    )
    direction = weights[0] * units[0] + weights[1] * units[1]
    lengths = (1.0 - t) * norms[0] + t * norms[1]
    found: np.ndarray = (direction * lengths).astype(np.float32).reshape(len(first), len(shares), *first.shape[1:])
    return found


def interpolate(
    run: Run,
    first: np.ndarray,
    second: np.ndarray,
    *,
    num: int = 8,
    cond: Condition | None = None,
    second_cond: Condition | None = None,
    noise_level: float | None = None,
) -> np.ndarray:
    """Data between two images or clips, by spherical interpolation of their noise.

    Args:
      run: the trained model.
      first, second: float [n, *size], in the units of the flow.
      num: points on the way, both ends included, at least 2.
      cond: of `first`: class labels, captions or text states; None for none.
      second_cond: of `second`; None for `cond`. Where they differ, what the flow reads goes evenly from one to the
        other: text states, or weights of the classes.
      noise_level: of a noise-conditioned model; None for its highest one.

    Returns:
      float32 [n, num, *size]; the ends are `first` and `second` as closely as the solver inverts the flow.

    Raises:
      ValueError: an argument that does not fit the model.
    """
    check_integer("num", num, minimum=2, maximum=10_000)
    first, second, model = _checked(run, first, second, noise_level)
    shares = np.linspace(0.0, 1.0, num)
    ends = [given_condition(run, given, len(first)) for given in (cond, cond if second_cond is None else second_cond)]
    z = spherical(noise_of(model, first, ends[0]), noise_of(model, second, ends[1]), shares)
    between = None
    if ends[0] is not None and ends[1] is not None:
        states = [_continuous(run, np.asarray(end)) for end in ends]
        t = shares.reshape(1, -1, *(1,) * (states[0].ndim - 1)).astype(np.float32)
        between = ((1.0 - t) * states[0][:, None] + t * states[1][:, None]).reshape(-1, *states[0].shape[1:])
        if np.array_equal(ends[0], ends[1]):
            between = np.repeat(ends[0], num, axis=0)
    return data_of(model, z.reshape(-1, *model.shape), between).reshape(z.shape)


def change_condition(
    run: Run,
    x: np.ndarray,
    cond: Condition,
    new_cond: Condition,
    *,
    shift: np.ndarray | None = None,
    noise_level: float | None = None,
) -> np.ndarray:
    """Data decoded from its own noise under another class or caption: what the flow does not tie to it stays.

    Args:
      run: the trained model.
      x: float [n, *size], in the units of the flow.
      cond: class labels, captions or text states of x; new_cond: those of the result.
      shift: float, broadcasts against x; added to its noise, such as `attribute_direction`.
      noise_level: of a noise-conditioned model; None for its highest one.

    Returns:
      float32 [n, *size].

    Raises:
      ValueError: an argument that does not fit the model.
    """
    x, _, model = _checked(run, x, x, noise_level)
    z = noise_of(model, x, given_condition(run, cond, len(x)))
    if shift is not None:
        shift = np.asarray(shift, np.float32)
        check(np.isfinite(shift).all() and shift.shape[-len(model.shape) :] == model.shape, "shift must fit x")
        z = z + shift
    return data_of(model, z, given_condition(run, new_cond, len(x)))


def attribute_direction(
    run: Run,
    without: np.ndarray,
    having: np.ndarray,
    *,
    cond: Condition | None = None,
    strength: float = 1.0,
    noise_level: float | None = None,
) -> np.ndarray:
    """The difference of the mean noise of examples that have an attribute to those without it (Glow: 1807.03039).

    Args:
      run: the trained model.
      without, having: float [n, *size] and [m, *size], in the units of the flow.
      cond: one condition for all of them, as a sequence of one; None for none.
      strength: factor of the difference.
      noise_level: of a noise-conditioned model; None for its highest one.

    Returns:
      float32 [*size], for `shift` of `change_condition`.

    Raises:
      ValueError: an argument that does not fit the model.
    """
    check_real("strength", strength)
    means = []
    for x in (without, having):
        x, _, model = _checked(run, x, x, noise_level)
        given = None if cond is None else list(cond) * len(x)
        means.append(noise_of(model, x, given_condition(run, given, len(x))).mean(axis=0))
    found: np.ndarray = np.float32(strength) * (means[1] - means[0])
    return found


def noise_of(model: Distribution, x: np.ndarray, cond: np.ndarray | None, batch: int = 64) -> np.ndarray:
    """The noise of data, float32 [n, *size]."""
    return _in_batches(lambda *given: model.inverse_and_log_det(*given)[0], x, cond, batch)


def data_of(model: Distribution, z: np.ndarray, cond: np.ndarray | None, batch: int = 64) -> np.ndarray:
    """The data of noise, float32 [n, *size]."""
    return _in_batches(lambda *given: model.transform_and_log_det(*given)[0], z, cond, batch)


def _in_batches(
    function: Callable[..., jax.Array], values: np.ndarray, cond: np.ndarray | None, batch: int
) -> np.ndarray:
    size = min(batch, len(values))
    found = []
    for first in range(0, len(values), size):
        rows = np.resize(np.arange(first, min(first + size, len(values))), size)
        out = function(jnp.asarray(values[rows], jnp.float32), None if cond is None else jnp.asarray(cond[rows]))
        found.append(np.asarray(out)[: len(values) - first])
    return np.concatenate(found)


def _continuous(run: Run, cond: np.ndarray) -> np.ndarray:
    """A condition that can be interpolated: text states, or weights of the classes."""
    if cond.ndim > 1:
        return cond
    classes = run.config.flow.num_classes
    weights = np.full((len(cond), classes), 1.0 / classes, np.float32)  # a dropped label
    known = cond >= 0
    weights[known] = np.eye(classes, dtype=np.float32)[cond[known]]
    return weights


def _checked(
    run: Run, first: np.ndarray, second: np.ndarray, noise_level: float | None
) -> tuple[np.ndarray, np.ndarray, Distribution]:
    first, second = np.asarray(first), np.asarray(second)
    frames = first.shape[1] if first.ndim == 5 else None
    model = distribution(run, frames=frames, noise_level=noise_level)
    for x in (first, second):
        check(
            x.dtype.kind == "f" and x.shape[1:] == model.shape and len(x) > 0,
            f"x must be floating point [n, {', '.join(map(str, model.shape))}], got {x.dtype} {list(x.shape)}",
        )
        check(bool(np.isfinite(x).all()), "x must be finite, got values that are not")
    check(len(first) == len(second), f"second must be {len(first)} examples, as first, got {len(second)}")
    return first.astype(np.float32), second.astype(np.float32), model
