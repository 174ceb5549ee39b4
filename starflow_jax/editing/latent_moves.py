"""Moves of the noise z of data x, whose prior is standard normal, whatever the shape of the density of x.

Without a gradient: preconditioned Crank-Nicolson (Cotter, Roberts, Stuart and White 2013). The proposal
z' = sqrt(1 - b^2) z + b n leaves the prior invariant, so that only the likelihood decides about x' = F^-1(z').

With one: Hamiltonian dynamics in which the prior is followed exactly, by rotations of z and its momentum, and the
likelihood by kicks (Beskos, Pinski, Sanz-Serna and Stuart 2011). With momenta of covariance 1 / C, C diagonal, in units
of the square roots of C: w = z / sqrt(C) and v have dw/dt = v, dv/dt = -C w + sqrt(C) g, g = grad_z log p(y | x). The
data of a flow have narrow directions that differ from place to place (a pixel of one level here, of another there),
which no fixed preconditioner of x fits; in z they are as wide as all others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.editing.langevin_moves import Point, accepted, jittered, squares
from starflow_jax.editing.posterior import Posterior, of_rows

# The mean acceptance that step sizes are adapted to: that of random walks in many dimensions is best near 0.234
# (Roberts, Gelman and Gilks 1997), and flat around it.
LATENT_ACCEPTANCE = 0.3


def latent_move(
    posterior: Posterior,
    point: Point,
    key: PRNGKeyArray,
    sigma: Float[Array, "B"],
    step: Float[Array, "B"],
    *,
    gradient: bool,
) -> tuple[Point, Float[Array, "B"]]:
    """One move of every chain; every value of x moves.

    Args:
      posterior: whose density it follows, with `sigma` in place of its own.
      point: of the chains.
      key: of the noise.
      sigma: of every row; step: b of every row, above 0, where 1 and more draw from the prior.
      gradient: whether the terms of the new points have gradients, which cost another pass of the network and one
        back.

    Returns:
      The new points, and the probabilities with which they were accepted.
    """
    noise_key, accept_key = jax.random.split(key)
    size = of_rows(jnp.minimum(step, 1.0), point.x)
    z = jnp.sqrt(1.0 - size**2) * point.terms.z + size * jax.random.normal(noise_key, point.x.shape)
    x, log_prior = posterior.prior.data(z)
    error = posterior.error(x)
    log_ratio = 0.5 * (point.terms.error - error) / sigma**2
    known = point.terms._replace(log_prior=log_prior, error=error, z=z)
    terms = posterior.terms(x) if gradient else known
    return accepted(accept_key, Point(x, terms), point, log_ratio)


def latent_hamiltonian_move(
    posterior: Posterior,
    point: Point,
    key: PRNGKeyArray,
    sigma: Float[Array, "B"],
    step: Float[Array, "B"],
    variance: Float[Array, "B *size"],
    *,
    leapfrog: int,
) -> tuple[Point, Float[Array, "B"]]:
    """One move of every chain along the gradient with respect to z; every value of x moves.

    Where the prior's `noise_gradient` is an approximation, the rule is exact nevertheless: kicks by any function of
    z keep volumes and can be reversed.

    Args:
      posterior: whose density it follows, with `sigma` in place of its own.
      point: of the chains.
      key: of the noise.
      sigma: of every row; step: length of a leapfrog step in time, which where C is 1 is the angle of its rotation.
      variance: the diagonal of C, about the variances of the values of z.
      leapfrog: steps of a move, each of one call of the solver and one gradient.

    Returns:
      The new points, whose terms have the `score` of where they began, and the probabilities of acceptance.
    """
    noise_key, accept_key, length_key = jax.random.split(key, 3)
    length, scale = of_rows(jittered(length_key, step, leapfrog), point.x), jnp.sqrt(variance)
    cosine, sine = jnp.cos(scale * length), jnp.sin(scale * length)

    def force(x: Float[Array, "B *size"], slope: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        return -scale * posterior.prior.noise_gradient(x, slope) / of_rows(2.0 * sigma**2, x)

    def one(carry: tuple[Point, jax.Array, jax.Array], _: None) -> tuple[tuple[Point, jax.Array, jax.Array], None]:
        point, pull, momentum = carry
        momentum = momentum + 0.5 * length * pull
        z = point.terms.z
        z, momentum = cosine * z + sine * momentum, cosine * momentum - sine * z
        x, log_prior = posterior.prior.data(z)
        error, back = jax.vjp(posterior.error, x)
        (slope,) = back(jnp.ones_like(error))
        pull = force(x, slope)
        terms = point.terms._replace(log_prior=log_prior, error=error, z=z, slope=slope)
        return (Point(x, terms), pull, momentum + 0.5 * length * pull), None

    momentum = jax.random.normal(noise_key, point.x.shape)
    begin = (point, force(point.x, point.terms.slope), momentum)
    (proposal, _, end), _ = jax.lax.scan(one, begin, length=leapfrog)
    log_ratio = 0.5 * (squares(momentum) - squares(end) + squares(point.terms.z) - squares(proposal.terms.z))
    log_ratio += 0.5 * (point.terms.error - proposal.terms.error) / sigma**2
    return accepted(accept_key, proposal, point, log_ratio)
