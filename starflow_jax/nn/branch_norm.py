"""The norms in front of the branches of a layer, one of which a condition modulates."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.nn.linear import Compute, LayerNorm, RMSNorm, layer_norm
from starflow_jax.nn.quantised_linear import dense

# [B or 1, n or 1, D]; an axis of 1 stands for all examples or tokens.
Condition = Float[Array, "rows slots D"]


@flax.struct.dataclass
class Modulation:
    """Scale, shift and gate of one norm, computed from a condition: [B or 1, n or 1, 3, D], in the compute dtype."""

    values: jax.Array


class AdaptiveNorm(nnx.Module):
    """Layer norm with scale, shift and a gate of the branch from a condition c (adaLN-Zero of DiT, arXiv 2212.09748):

        h + gate(c) * branch(layer_norm(h) * (1 + scale(c)) + shift(c))

    All three are linear in c and start at zero, so that a new layer is the identity map. There is no nonlinearity in
    front of the linear layer: conditions are sums of embeddings, and no features of an MLP as those of DiT.

    Args:
      width: D, channels of h and of the condition.
      key: of the initial kernel.
      compute: numerics and placement of the linear layer, of shape [D, 3, D].
    """

    def __init__(self, width: int, key: PRNGKeyArray, compute: Compute):
        self.modulation = dense(width, (3, width), key, name="modulation", std=0.0, compute=compute)

    def modulated(self, condition: Condition) -> Modulation:
        """Scale, shift and gate from a condition [B or 1, n or 1, D]."""
        return Modulation(self.modulation(condition))

    def __call__(
        self, h: Float[Array, "B n D"], condition: Condition | Modulation
    ) -> tuple[Float[Array, "B n D"], Float[Array, "rows slots D"]]:
        """The input of the branch [B, n, D], and the gate of its output [B or 1, n or 1, D], in the dtype of h.

        Args:
          h: hidden states [B, n, D].
          condition: [B or 1, n or 1, D], or what `modulated` gives for it.
        """
        given = condition if isinstance(condition, Modulation) else self.modulated(condition)
        scale, shift, gate = jnp.moveaxis(given.values, -2, 0)
        return layer_norm(h, 1.0 + scale.astype(jnp.float32), shift), gate.astype(h.dtype)


BranchNorm = LayerNorm | RMSNorm | AdaptiveNorm


def branch_norm(kind: str, width: int, key: PRNGKeyArray, compute: Compute) -> BranchNorm:
    """The norm named by `TransformerConfig.norm`."""
    if kind == "adaptive":
        return AdaptiveNorm(width, key, compute)
    return LayerNorm(width) if kind == "layer" else RMSNorm(width)


def normed(
    norm: BranchNorm, h: Float[Array, "B n D"], condition: Condition | Modulation | None
) -> tuple[Float[Array, "B n D"], Float[Array, "rows slots D"] | None]:
    """The input of a branch [B, n, D], and the gate of its output [B or 1, n or 1, D], in the dtype of h.

    Args:
      norm: of the branch.
      h: hidden states [B, n, D].
      condition: [B or 1, n or 1, D], or its modulation, for an adaptive norm; others do not read it, and their gate
        is None.
    """
    if isinstance(norm, AdaptiveNorm):
        assert condition is not None  # flows with these norms have one
        return norm(h, condition)
    return norm(h), None


def gated(branch: Float[Array, "B n D"], gate: Float[Array, "rows slots D"] | None) -> Float[Array, "B n D"]:
    """The output of a branch [B, n, D] times its gate [B or 1, n or 1, D]; as it is where the gate is None."""
    return branch if gate is None else branch * gate
