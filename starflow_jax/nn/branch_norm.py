"""The norms in front of the branches of a layer, one of which a condition modulates."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.nn.linear import Compute, LayerNorm, RMSNorm, layer_norm
from starflow_jax.nn.quantised_linear import dense

# Of every token, or of all tokens, and of every example, or of all.
Condition = Float[Array, "rows slots D"]


class AdaptiveNorm(nnx.Module):
    """Layer norm with scale, shift and a gate of the branch from a condition c (adaLN-Zero of DiT, arXiv 2212.09748):

        h + gate(c) * branch(layer_norm(h) * (1 + scale(c)) + shift(c))

    All three are linear in c and start at zero, so that a new layer is the identity map. There is no nonlinearity in
    front of the linear layer: conditions are sums of embeddings, and no features of an MLP as those of DiT.
    """

    def __init__(self, width: int, key: PRNGKeyArray, compute: Compute):
        self.modulation = dense(width, (3, width), key, name="modulation", std=0.0, compute=compute)

    def __call__(
        self, h: Float[Array, "B n D"], condition: Condition
    ) -> tuple[Float[Array, "B n D"], Float[Array, "rows slots D"]]:
        """The input of the branch, and the gate of its output, in the dtype of h."""
        scale, shift, gate = jnp.moveaxis(self.modulation(condition), -2, 0)
        return layer_norm(h, 1.0 + scale.astype(jnp.float32), shift), gate.astype(h.dtype)


BranchNorm = LayerNorm | RMSNorm | AdaptiveNorm


def branch_norm(kind: str, width: int, key: PRNGKeyArray, compute: Compute) -> BranchNorm:
    """The norm named by `TransformerConfig.norm`."""
    if kind == "adaptive":
        return AdaptiveNorm(width, key, compute)
    return LayerNorm(width) if kind == "layer" else RMSNorm(width)


def normed(
    norm: BranchNorm, h: Float[Array, "B n D"], condition: Condition | None
) -> tuple[Float[Array, "B n D"], Float[Array, "rows slots D"] | None]:
    """The input of a branch, and the gate of its output, None for norms without one."""
    if isinstance(norm, AdaptiveNorm):
        assert condition is not None  # flows with these norms have one
        return norm(h, condition)
    return norm(h), None


def gated(branch: Float[Array, "B n D"], gate: Float[Array, "rows slots D"] | None) -> Float[Array, "B n D"]:
    """The output of a branch times its gate."""
    return branch if gate is None else branch * gate
