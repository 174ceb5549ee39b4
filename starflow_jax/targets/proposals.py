"""Distributions that samples are drawn from, and targets as functions that one compiled program can take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.core.config.checks import check

# log p~ of points [n, *shape]: [n], in nats and up to a constant. A `jax.tree_util.Partial` may hold arrays, which can
# then change from call to call without another compilation.
Target = Callable[[jax.Array], jax.Array]


class Proposal(Protocol):
    """What the functions of this package draw from; `Distribution` and `Normal` implement it, both pytrees."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x."""

    def sample_and_log_prob(
        self, key: PRNGKeyArray, shape: tuple[int, ...] = (), condition: Any = None
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Samples [*shape, *self.shape] and their log-densities [*shape] in nats."""

    def log_prob(self, x: Float[Array, "..."], condition: Any = None) -> Float[Array, "..."]:
        """The log-density of x, in nats."""


@flax.struct.dataclass
class Normal:
    """A normal distribution of independent numbers: a start for `anneal` that costs no network evaluation.

    Attributes:
      shape: of one x, static.
      mean, scale: mean and standard deviation, scalars or arrays that broadcast to `shape`.
    """

    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    mean: float | jax.Array = 0.0
    scale: float | jax.Array = 1.0

    def sample_and_log_prob(
        self, key: PRNGKeyArray, shape: tuple[int, ...] = (), condition: None = None
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """See `Proposal`."""
        x = self.mean + self.scale * jax.random.normal(key, (*shape, *self.shape))
        return x, self.log_prob(x)

    def log_prob(self, x: Float[Array, "..."], condition: None = None) -> Float[Array, "..."]:
        """See `Proposal`."""
        leading = x.shape[: x.ndim - len(self.shape)]
        squares = jnp.sum(((x - self.mean) / self.scale).reshape(*leading, -1) ** 2, axis=-1)
        log_scale = jnp.sum(jnp.broadcast_to(jnp.log(self.scale), self.shape))
        return -0.5 * squares - log_scale - 0.5 * math.prod(self.shape) * math.log(2 * math.pi)


def as_argument(target: Target, shape: tuple[int, ...], num: int) -> jax.tree_util.Partial:
    """A target as an argument of compiled programs, whose identity is that of its function.

    Args:
      target: the log-density; shape: of one x; num: number of points that it will get.

    Raises:
      ValueError: it is no function, or does not give one number for every point.
    """
    check(callable(target), f"target must be a function of points, got {type(target).__name__}")
    points = jax.ShapeDtypeStruct((num, *shape), jnp.float32)
    try:
        values = jax.eval_shape(target, points)
    except Exception as error:  # a function of the user's own may raise anything
        raise ValueError(
            f"target failed for float32 points of shape {list(points.shape)} with {type(error).__name__}: {error}"
        ) from error
    found = getattr(values, "shape", None)
    check(
        found == (num,) and jnp.issubdtype(values.dtype, jnp.floating),
        f"target must return [{num}] log-densities for {num} points, got "
        + (type(values).__name__ if found is None else f"{values.dtype} of shape {list(found)}"),
    )
    return target if isinstance(target, jax.tree_util.Partial) else jax.tree_util.Partial(target)


def check_condition(proposal: Proposal, condition: Any) -> None:
    """Raises ValueError where a condition is not one for all samples."""
    axes = getattr(proposal, "leading_axes", None)
    if axes is None:
        check(condition is None, f"condition must be None for {type(proposal).__name__}, got {condition!r}")
        return
    leading = axes(condition)
    check(leading == (), f"condition must be one for all samples, got one with leading axes {list(leading)}")
