"""The training objective: negative log-likelihood per dimension (specification, section 2)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from starflow_jax.flows.flow import FlowOutput, standard_normal_log_prob

__all__ = ["Objective", "objective", "standard_normal_log_prob"]


@flax.struct.dataclass
class Objective:
    """The minimised loss, and unweighted loss_z = 0.5 mean z^2 and loss_logdet = -sum_k mean logdet_k."""

    loss: jax.Array
    loss_z: jax.Array
    loss_logdet: jax.Array


def _mean_per_sample(x: Float[Array, "B *rest"]) -> Float[Array, "B"]:
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def objective(
    output: FlowOutput,
    *,
    weights: float | Float[Array, ""] | Float[Array, "B"] | None = None,
    latent_norm: float = 0.0,
) -> Objective:
    """Negative log-likelihood per dimension, constants dropped, averaged over the batch.

    Args:
      output: result of `Flow.forward`.
      weights: [B] or scalar; multiplies each sample's two terms (sigma_n / 0.3 under noise-level conditioning).
      latent_norm: weight of the regulariser sum_k mean u_k^2 over the tokens entering every block, added unweighted.
    """
    z_term = 0.5 * _mean_per_sample(output.z**2)
    logdet_term = -sum(_mean_per_sample(d) for d in output.all_logdets)
    if output.lengths is not None:  # the mean over the tokens that are no padding, whose terms are 0
        share = output.z.shape[1] / output.lengths
        z_term, logdet_term = share * z_term, share * logdet_term
    total = z_term + logdet_term
    loss = jnp.mean(total if weights is None else weights * total)
    if latent_norm:
        loss = loss + latent_norm * sum(jnp.mean(u**2) for u in output.tokens[:-1])
    return Objective(loss, jnp.mean(z_term), jnp.mean(logdet_term))
