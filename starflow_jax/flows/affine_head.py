"""The map from the network's output to the mean and scale of tokens: soft clip, scale, guidance."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.core.choices import GuidanceKind, Scale
from starflow_jax.flows.affine import Affine, soft_clip, to_affine
from starflow_jax.flows.guidance import annealed_weight, guide_by_ratio, guide_linearly, halves


@dataclasses.dataclass(frozen=True)
class AffineHead:
    """The operations after the last layer of a block's network; static and without parameters.

    Implements `kernels.jacobi_update.reference.OutputHead`, so that the kernels of the Jacobi update can compute it.

    Attributes:
      scale: "softplus" or "exp" of the first half of the channels; "unit": all channels are means and the scale is 1.
      soft_clip: bound of the soft clip of the output, 0 for none.
      guidance: formula by which the unconditional rows (second half of the batch) guide the conditional ones, or None.
      annealed_tokens: N where the guidance weight of token j of N is multiplied by j / (N - 1); 0 otherwise.
    """

    scale: Scale = "softplus"
    soft_clip: float = 0.0
    guidance: GuidanceKind | None = None
    annealed_tokens: int = 0

    @property
    def num_passes(self) -> int:
        """Rows of output for one row of the result: 2 under guidance."""
        return 1 if self.guidance is None else 2

    def affine(
        self,
        out: Float[Array, "rows n outputs"],
        weight: float | Float[Array, ""] = 0.0,
        first: int | Int[Array, ""] = 0,
    ) -> Affine:
        """Mean and scale, float32.

        Args:
          out: [B, n, 2c] output of the network, [2B, n, 2c] under guidance; c channels where the scale is "unit".
          weight: guidance weight.
          first: index of the first of the n tokens in the block's order, for annealed weights.
        """
        affine = to_affine(soft_clip(out.astype(jnp.float32), self.soft_clip), self.scale)
        if self.guidance is None:
            return affine
        conditional, unconditional = halves(affine)
        if self.guidance == "ratio":
            return guide_by_ratio(conditional, unconditional, weight)
        w = jnp.float32(weight)
        if self.annealed_tokens:
            w = annealed_weight(w, first + jnp.arange(out.shape[1]), self.annealed_tokens)
        return guide_linearly(conditional, unconditional, w, self.guidance)

    def mean_and_scale(
        self,
        out: Float[Array, "rows n outputs"],
        weight: float | Float[Array, ""],
        first: int | Int[Array, ""],
    ) -> tuple[Float[Array, "B n c"], Float[Array, "B n c"]]:
        """`affine` as two arrays."""
        affine = self.affine(out, weight, first)
        return affine.mean, affine.scale
