"""Self-normalised importance sampling with a flow as the proposal.

A target is a log-density that need not be normalised, log p~ = log p + log Z. A sample x of the proposal has the weight
w = p~(x) / q(x) with the exact density q of the flow, so that the mean weight estimates Z, and weighted means are those
of the target.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.sampling.resampling import effective_sample_size, systematic
from starflow_jax.targets.proposals import Proposal, Target, as_argument, check_condition

# The share of the largest weights that `WeightedSamples.clipped` lowers.
CLIPPED = 0.002


@flax.struct.dataclass
class WeightedSamples:
    """Points with importance weights.

    Attributes:
      x: [n, *shape] float32.
      log_weights: [n] float32, log p~(x) - log q(x) in nats.
      log_q: [n] float32, log-density of the proposal.
    """

    x: jax.Array
    log_weights: jax.Array
    log_q: jax.Array

    @property
    def weights(self) -> Float[Array, "n"]:
        """Self-normalised weights, whose sum is 1."""
        return jax.nn.softmax(self.log_weights)

    @property
    def effective_sample_size(self) -> Float[Array, ""]:
        """Kish's effective sample size (sum w)^2 / sum w^2, from 1 to n."""
        return effective_sample_size(self.log_weights)

    @property
    def log_z(self) -> Float[Array, ""]:
        """log Z by the mean weight, whose expectation is Z."""
        return jax.nn.logsumexp(self.log_weights) - jnp.log(len(self.log_weights))

    @property
    def log_z_error(self) -> Float[Array, ""]:
        """Standard error of `log_z` by the delta method: that of the mean weight divided by it, of independent x."""
        relative = jnp.exp(self.log_weights - self.log_z)
        return jnp.std(relative, ddof=1) / jnp.sqrt(len(relative))

    def bootstrap_log_z_error(self, key: PRNGKeyArray, draws: int = 200) -> Float[Array, ""]:
        """Standard error of `log_z` by the bootstrap: its deviation over `draws` choices of n points with replacement.

        Raises:
          ValueError: fewer than two draws.
        """
        check_integer("draws", draws, minimum=2)
        return jnp.std(_bootstrapped_log_z(self.log_weights, key, draws), ddof=1)

    def mean(self, values: Float[Array, "n ..."]) -> Float[Array, "..."]:
        """The expectation under the target of a quantity whose values at the points are given, [n, ...]."""
        return jnp.tensordot(self.weights, values, axes=1)

    def clipped(self, share: float = CLIPPED) -> WeightedSamples:
        """The samples with the largest weights lowered to the quantile of 1 - share (truncated importance sampling).

        Weighted means then vary less and have a small bias. Take `log_z` and its error before clipping.

        Raises:
          ValueError: a share below 0 or not below 1.
        """
        check_real("share", share, minimum=0.0)
        check(share < 1.0, f"share must be below 1, got {share}")
        # A weight of 0 has the logarithm -inf, between which and a number a quantile cannot interpolate.
        bound = jnp.quantile(self.log_weights, 1.0 - share, method="lower")
        return WeightedSamples(self.x, jnp.minimum(self.log_weights, bound), self.log_q)

    def resampled(self, key: PRNGKeyArray, num: int | None = None) -> Float[Array, "num ..."]:
        """Points [num, *shape] of equal weight, drawn by systematic resampling; None for as many as there are.

        Raises:
          ValueError: num below 1.
        """
        number = len(self.log_weights) if num is None else num
        check_integer("num", number, minimum=1)
        return self.x[systematic(key, self.log_weights, number)]


def draw(
    proposal: Proposal,
    target: Target,
    key: PRNGKeyArray,
    num: int,
    *,
    condition: Any = None,
    batch_size: int | None = None,
) -> WeightedSamples:
    """Draws samples of a flow with weights for a target; one compiled program.

    Args:
      proposal: a `Distribution` of a flow, or a `Normal`.
      target: log p~ of points [n, *proposal.shape], [n], in nats; it may be unnormalised, and -inf outside of its
        support. A function is compiled once: define it once and pass the same object.
      key: of the noise.
      num: number of samples.
      condition: of the flow, one for all samples.
      batch_size: number of samples that are computed at a time, None for all; it limits the memory. Samples depend on
        it.

    Raises:
      ValueError: an argument is out of range, the target does not return one number for every point, it returns NaN
        or infinity, or it is -inf at every point.
    """
    check_integer("num", num, minimum=1)
    size = num if batch_size is None else batch_size
    check_integer("batch_size", size, minimum=1)
    check_condition(proposal, condition)
    drawn: WeightedSamples = _draw(
        num, min(size, num), proposal, as_argument(target, proposal.shape, min(size, num)), key, condition
    )
    if not isinstance(drawn.log_weights, jax.core.Tracer):
        check_log_weights(np.asarray(drawn.log_weights))
    return drawn


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(
    num: int, size: int, proposal: Proposal, target: jax.tree_util.Partial, key: PRNGKeyArray, condition: Any
) -> WeightedSamples:
    """`draw` in batches of `size`, the last of which may be cut."""

    def batch(key: PRNGKeyArray) -> WeightedSamples:
        x, log_q = proposal.sample_and_log_prob(key, (size,), condition)
        return WeightedSamples(x, target(x).astype(jnp.float32) - log_q, log_q)

    if size == num:
        return batch(key)
    drawn = jax.lax.map(batch, jax.random.split(key, -(-num // size)))
    flat: WeightedSamples = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num], drawn)
    return flat


@functools.partial(jax.jit, static_argnums=2)
def _bootstrapped_log_z(log_weights: Float[Array, "n"], key: PRNGKeyArray, draws: int) -> Float[Array, "draws"]:
    """Up to a constant, log Z of as many points as there are, chosen with replacement, `draws` times."""
    count = len(log_weights)

    def one(key: PRNGKeyArray) -> jax.Array:
        return jax.nn.logsumexp(log_weights[jax.random.randint(key, (count,), 0, count)])

    return jax.lax.map(one, jax.random.split(key, draws))


def check_log_weights(log_weights: np.ndarray) -> None:
    """Raises ValueError unless every weight is a number, and one of them is not 0."""
    wrong = int(np.sum(np.isnan(log_weights) | (log_weights == np.inf)))
    check(wrong == 0, f"target must be finite or -inf, got NaN or infinity at {wrong} of {len(log_weights)} points")
    check(
        bool(np.any(log_weights > -np.inf)),
        f"target must be above -inf somewhere, got -inf at all {len(log_weights)} points of the proposal",
    )
