"""Annealed sequential Monte Carlo from a proposal to a target, with Metropolis-adjusted Langevin moves (MALA).

The densities between are q^(1 - b) p~^b for inverse temperatures b from 0 to 1 (Del Moral, Doucet and Jasra, 2006).
Every level takes the largest b at which the conditional effective sample size (Zhou, Johansen and Aston, 2016) is a
given share of the points, reweights the points, resamples them where their effective sample size is small, and moves
them. The product of the mean incremental weights estimates Z.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.sampling.resampling import effective_sample_size, systematic
from starflow_jax.targets.importance import WeightedSamples, check_log_weights
from starflow_jax.targets.proposals import Proposal, Target, as_argument, check_condition

# The step grows where more proposals than the first share are accepted, and shrinks below the second, by the factor.
GROW_ABOVE, SHRINK_BELOW, FACTOR = 0.6, 0.55, 1.1
# Halvings of the interval in which the next temperature is sought: to 1e-7 of it, the resolution of float32.
HALVINGS = 24


@flax.struct.dataclass
class Annealed:
    """The result of `anneal`.

    Attributes:
      samples: points with the weights that they have gathered since their last resampling; their `log_z` is not that
        of the target. `samples.log_q` is the density of the proposal at the moved points.
      log_z: estimate of log Z, [] float32.
      levels: number of levels, [] int32.
      temperature: [max_levels] float32, the inverse temperature b that each level reached; NaN after the last level.
      effective: [max_levels] share of the effective sample size among the points, before a resampling.
      acceptance: [max_levels] mean acceptance of the moves; step: [max_levels] their last step size.
      resampled: [max_levels] whether the points were resampled.
    """

    samples: WeightedSamples
    log_z: jax.Array
    levels: jax.Array
    temperature: jax.Array
    effective: jax.Array
    acceptance: jax.Array
    step: jax.Array
    resampled: jax.Array

    @property
    def reached(self) -> Bool[Array, ""]:
        """Whether the last level is the target; False where `max_levels` were too few."""
        return jnp.nanmax(self.temperature) >= 1.0


def anneal(
    proposal: Proposal,
    target: Target,
    key: PRNGKeyArray,
    num: int,
    *,
    conditional: float = 0.95,
    threshold: float = 0.5,
    moves: int = 2,
    step: float = 1e-2,
    max_levels: int = 200,
    condition: Any = None,
) -> Annealed:
    """Carries samples of a proposal to a target; one compiled program, whose loops run on the device.

    Args:
      proposal: as in `draw`.
      target: as in `draw`; it must be differentiable.
      key: of all noise.
      num: number of points.
      conditional: share of the conditional effective sample size that determines the next temperature, below 1; the
        closer to 1, the more levels.
      threshold: share of the effective sample size below which the points are resampled, at most 1; 0 never resamples.
      moves: MALA moves at every level.
      step: first size h of a step x + h grad + sqrt(2 h) noise; it then follows the acceptance.
      max_levels: most levels.
      condition: of the flow, one for all samples.

    Raises:
      ValueError: an argument is out of range, the target does not return one number for every point, it returns NaN
        or infinity, or `max_levels` do not reach it. Under a transformation, see `Annealed.reached`.
    """
    for name, value in (("num", num), ("moves", moves), ("max_levels", max_levels)):
        check_integer(name, value, minimum=1)
    for name, share in (("conditional", conditional), ("threshold", threshold), ("step", step)):
        check_real(name, share, minimum=0.0)
    check(0 < conditional < 1, f"conditional must be above 0 and below 1, got {conditional}")
    check(threshold <= 1, f"threshold must be at most 1, got {threshold}")
    check(step > 0, f"step must be above 0, got {step}")
    check_condition(proposal, condition)
    argument = as_argument(target, proposal.shape, num)
    found: Annealed = _anneal(num, moves, max_levels, proposal, argument, key, conditional, threshold, step, condition)
    if not isinstance(found.log_z, jax.core.Tracer):
        check_log_weights(np.asarray(found.samples.log_weights))
        reached = float(jnp.nanmax(found.temperature))
        check(
            bool(found.reached),
            f"max_levels must be larger: {max_levels} levels reached the inverse temperature {reached:.3g} of 1",
        )
    return found


class _State(NamedTuple):
    """The points between levels: [n, *shape], [n], [], [], [], [] and the records of the levels, [max_levels]."""

    x: jax.Array
    log_weights: jax.Array
    log_z: jax.Array
    temperature: jax.Array
    step: jax.Array
    level: jax.Array
    records: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _anneal(
    num: int,
    moves: int,
    max_levels: int,
    proposal: Proposal,
    target: jax.tree_util.Partial,
    key: PRNGKeyArray,
    conditional: float,
    threshold: float,
    step: float,
    condition: Any,
) -> Annealed:
    """The loop over the levels; arguments as in `anneal`."""
    first_key, level_key = jax.random.split(key)

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return proposal.log_prob(x, condition), target(x).astype(jnp.float32)

    def level(state: _State) -> _State:
        resample_key, move_key = jax.random.split(jax.random.fold_in(level_key, state.level))
        log_q, log_p = both(state.x)
        log_ratio = log_p - log_q
        after = next_temperature(log_ratio, state.log_weights, state.temperature, conditional)
        # A density of 0 stays one at every temperature above 0, also where the difference is 0.
        increment = jnp.where(log_ratio == -jnp.inf, -jnp.inf, (after - state.temperature) * log_ratio)
        log_z = state.log_z + jax.nn.logsumexp(jax.nn.log_softmax(state.log_weights) + increment)
        log_weights = state.log_weights + increment
        effective = effective_sample_size(log_weights) / num
        small = effective < threshold
        index = jnp.where(small, systematic(resample_key, log_weights, num), jnp.arange(num))
        log_weights = jnp.where(small, jnp.zeros(num), log_weights)

        def density(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                log_q, log_p = both(x)
                values = (1 - after) * log_q + after * log_p
                return jnp.sum(values), values

            (_, values), gradient = jax.value_and_grad(total, has_aux=True)(x)
            return values, gradient

        def move(carry: tuple[Any, jax.Array], key: PRNGKeyArray) -> tuple[tuple[Any, jax.Array], jax.Array]:
            point, step = carry
            point, moved = metropolis_langevin(density, *point, key=key, step=step)
            acceptance = jnp.mean(moved)
            factor = jnp.where(acceptance > GROW_ABOVE, FACTOR, jnp.where(acceptance < SHRINK_BELOW, 1 / FACTOR, 1.0))
            return (point, step * factor), acceptance

        x = state.x[index]
        (point, next_step), accepted = jax.lax.scan(
            move, ((x, *density(x)), state.step), jax.random.split(move_key, moves)
        )
        new = {
            "temperature": after,
            "effective": effective,
            "acceptance": jnp.mean(accepted),
            "step": next_step,
            "resampled": small,
        }
        records = {name: rows.at[state.level].set(new[name]) for name, rows in state.records.items()}
        return _State(point[0], log_weights, log_z, after, next_step, state.level + 1, records)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.temperature < 1.0) & (state.level < max_levels)

    names = ("temperature", "effective", "acceptance", "step")
    records = {name: jnp.full(max_levels, jnp.nan) for name in names} | {"resampled": jnp.zeros(max_levels, bool)}
    x, _ = proposal.sample_and_log_prob(first_key, (num,), condition)
    zero = jnp.float32(0)
    start = _State(x, jnp.zeros(num), zero, zero, jnp.float32(step), jnp.int32(0), records)
    end = jax.lax.while_loop(unfinished, level, start)
    log_q = proposal.log_prob(end.x, condition)
    return Annealed(WeightedSamples(end.x, end.log_weights, log_q), end.log_z, end.level, **end.records)


def next_temperature(
    log_ratio: Float[Array, "n"],
    log_weights: Float[Array, "n"],
    temperature: Float[Array, ""],
    conditional: float | Float[Array, ""],
) -> Float[Array, ""]:
    """The largest inverse temperature, at most 1, at which the conditional effective sample size is `conditional` of n.

    Args:
      log_ratio: log p~ - log q of the points; log_weights: their weights; temperature: the one that they are at.
    """
    log_share = jax.nn.log_softmax(log_weights)

    def is_near(after: jax.Array) -> jax.Array:
        increment = jnp.where(log_ratio == -jnp.inf, -jnp.inf, (after - temperature) * log_ratio)
        mean = jax.nn.logsumexp(log_share + increment)
        return 2 * mean - jax.nn.logsumexp(log_share + 2 * increment) >= jnp.log(conditional)

    def halve(_: Int[Array, ""], bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        near = is_near(middle)
        return jnp.where(near, middle, low), jnp.where(near, high, middle)

    one = jnp.float32(1)
    # The upper bound, so that every level advances, also where no step is small enough.
    _, found = jax.lax.fori_loop(0, HALVINGS, halve, (temperature, one))
    return jnp.where(is_near(one), one, found)


def metropolis_langevin(
    density: Any,
    x: Float[Array, "n ..."],
    value: Float[Array, "n"],
    gradient: Float[Array, "n ..."],
    *,
    key: PRNGKeyArray,
    step: Float[Array, ""],
) -> tuple[tuple[Float[Array, "n ..."], Float[Array, "n"], Float[Array, "n ..."]], Float[Array, "n"]]:
    """One MALA move of independent points (Roberts and Tweedie, 1996).

    Args:
      density: log-densities and gradients of points.
      x, value, gradient: the points, with both.
      key: of the noise; step: h of x + h grad + sqrt(2 h) noise.

    Returns:
      The points after it with log-densities and gradients, and 1 for those that were moved, else 0.
    """
    noise_key, accept_key = jax.random.split(key)
    proposal = x + step * gradient + jnp.sqrt(2 * step) * jax.random.normal(noise_key, x.shape)
    new_value, new_gradient = density(proposal)

    def log_kernel(a: jax.Array, b: jax.Array, gradient: jax.Array) -> jax.Array:
        return -jnp.sum((b - a - step * gradient).reshape(len(a), -1) ** 2, axis=1) / (4 * step)

    ratio = new_value - value + log_kernel(proposal, x, new_gradient) - log_kernel(x, proposal, gradient)
    moved = jnp.log(jax.random.uniform(accept_key, ratio.shape)) < ratio  # False where the ratio is NaN

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(moved.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return (chosen(proposal, x), chosen(new_value, value), chosen(new_gradient, gradient)), moved.astype(jnp.float32)
