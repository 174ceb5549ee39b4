"""Moves of the noise z of data x: preconditioned Crank-Nicolson (Cotter, Roberts, Stuart and White 2013).

The prior of z is standard normal, whatever the shape of the density of x, and the proposal
z' = sqrt(1 - b^2) z + b n leaves it invariant, so that only the likelihood decides about x' = F^-1(z').
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.editing.langevin_moves import Point, accepted
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
