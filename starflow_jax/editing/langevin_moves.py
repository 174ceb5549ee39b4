"""Moves of data x along the gradient of the log-density, with the correction that makes them exact or without it.

With a momentum p of covariance 1 / P, P a diagonal preconditioner, a move takes some leapfrog steps of Hamiltonian
dynamics (Duane et al. 1987; Neal 2011) and accepts where they end by the Metropolis-Hastings rule, for which the flow
gives log p exactly. One step is the Metropolis-adjusted Langevin algorithm (MALA: Roberts and Tweedie 1996),

    x' = x + h / 2 P g + sqrt(h P) n,    g = grad log p(x | y),    n standard normal,

and without the rule it is the unadjusted one, whose bias is of the order of h.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from starflow_jax.editing.posterior import Posterior, Terms, log_density, of_rows


class Point(NamedTuple):
    """The current points of B chains, and the terms of their density.

    Attributes:
      x: float32 [B, *size].
      terms: at x.
    """

    x: jax.Array
    terms: Terms


# The mean acceptance of the greatest efficiency in many dimensions: of one leapfrog step (Roberts and Rosenthal 1998),
# and of several (Beskos, Pillai, Roberts, Sanz-Serna and Stuart 2013).
MALA_ACCEPTANCE, HAMILTONIAN_ACCEPTANCE = 0.574, 0.651
# Several steps of exactly one length may lead back to where they began: lengths vary by up to this share.
_JITTER = 0.25


def langevin_move(
    posterior: Posterior,
    point: Point,
    key: PRNGKeyArray,
    sigma: Float[Array, "B"],
    step: Float[Array, "B"],
    variance: Float[Array, "B *size"],
    *,
    leapfrog: int = 1,
    adjusted: bool | Bool[Array, ""] = True,
) -> tuple[Point, Float[Array, "B"]]:
    """One move of every chain.

    Args:
      posterior: whose density it follows, with `sigma` in place of its own.
      point: of the chains, with gradients.
      key: of the noise.
      sigma: of every row; step: h of every row, the square of the length of a leapfrog step.
      variance: the diagonal of P.
      leapfrog: steps of a move, each of one pass of the flow and one back.
      adjusted: whether the end is accepted by the Metropolis-Hastings rule.

    Returns:
      The new points, and the probabilities with which the rule accepts them. Unadjusted moves do not follow it, but
      stay where the proposal is not finite.
    """
    noise_key, accept_key, length_key = jax.random.split(key, 3)
    moving = posterior.moving(point.x)
    lengths = jittered(length_key, jnp.sqrt(step), leapfrog)
    # In units of sqrt(P), in which momenta are standard normal.
    scale = jnp.where(moving, jnp.sqrt(variance), 0.0)
    momentum = jnp.where(moving, jax.random.normal(noise_key, point.x.shape), 0.0)
    length = of_rows(lengths, point.x)

    def half_kick(terms: Terms, momentum: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        gradient = terms.score - terms.slope / of_rows(2.0 * sigma**2, terms.slope)
        return momentum + 0.5 * length * scale * gradient

    def one(carry: tuple[Point, jax.Array], _: None) -> tuple[tuple[Point, jax.Array], None]:
        point, momentum = carry
        momentum = half_kick(point.terms, momentum)
        x = point.x + length * scale * momentum
        terms = posterior.terms(x)
        return (Point(x, terms), half_kick(terms, momentum)), None

    (proposal, end), _ = jax.lax.scan(one, (point, momentum), length=leapfrog)
    log_ratio = 0.5 * (squares(momentum) - squares(end))
    log_ratio += log_density(proposal.terms.log_prior, proposal.terms.error, sigma)
    log_ratio -= log_density(point.terms.log_prior, point.terms.error, sigma)
    exact, probability = accepted(accept_key, proposal, point, log_ratio)
    if adjusted is True:
        return exact, probability
    finite = jnp.stack([jnp.isfinite(of).reshape(of.shape[0], -1).all(axis=1) for of in jax.tree.leaves(proposal)])
    free = _where(finite.all(axis=0), proposal, point)
    return _where(jnp.broadcast_to(adjusted, sigma.shape), exact, free), probability


def accepted(
    key: PRNGKeyArray, proposal: Point, point: Point, log_ratio: Float[Array, "B"]
) -> tuple[Point, Float[Array, "B"]]:
    """The proposals with probability min(1, exp(log_ratio)), else the current points; and these probabilities."""
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    probability = jnp.exp(jnp.minimum(log_ratio, 0.0))
    take = jax.random.uniform(key, log_ratio.shape) < probability
    return _where(take, proposal, point), probability


def _where(take: Bool[Array, "B"], proposal: Point, point: Point) -> Point:
    chosen: Point = jax.tree.map(lambda new, old: jnp.where(of_rows(take, new), new, old), proposal, point)
    return chosen


def jittered(key: PRNGKeyArray, lengths: Float[Array, "B"], leapfrog: int) -> Float[Array, "B"]:
    """Lengths of the leapfrog steps of a move, which vary at random from move to move where there are several."""
    if leapfrog == 1:
        return lengths
    factors: jax.Array = jax.random.uniform(key, lengths.shape, minval=1.0 - _JITTER, maxval=1.0 + _JITTER)
    return lengths * factors


def squares(noise: Float[Array, "B *size"]) -> Float[Array, "B"]:
    """The sum of squares of every row."""
    return jnp.sum((noise**2).reshape(noise.shape[0], -1), axis=1)
