"""The affine map x = mean + scale * z, and its parametrization by the network's output (specification, section 1.5)."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.jacobi_update.reference import masked_update

# softplus(SOFTPLUS_SHIFT) = 1, so that the output a = 0 means scale 1.
SOFTPLUS_SHIFT = math.log(math.expm1(1.0))


@flax.struct.dataclass
class Affine:
    """The affine map of n tokens.

    Attributes:
      mean, scale: [B, n, c] float32, scale > 0.
    """

    mean: jax.Array
    scale: jax.Array

    def inverse(self, z: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """x = mean + scale * z."""
        return self.mean + self.scale * z

    def update(
        self, z: Float[Array, "B n c"], x: Float[Array, "B n c"], span: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n c"], Float[Array, "B 2"]]:
        """One Jacobi update of the estimate x, see `prediction.Estimate.update`."""
        return masked_update(self.inverse(z), x, span)

    def forward(self, x: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """z = (x - mean) / scale."""
        return (x - self.mean) / self.scale

    @property
    def logdet(self) -> Float[Array, "B n c"]:
        """log |dz/dx| of every token and channel."""
        return -jnp.log(self.scale)


def soft_clip(out: Float[Array, "*shape"], bound: float) -> Float[Array, "*shape"]:
    """bound * tanh(out / bound); the identity where bound is 0."""
    return bound * jnp.tanh(out / bound) if bound > 0 else out


def to_affine(out: Float[Array, "B n outputs"], scale: str) -> Affine:
    """Mean and scale of the network's output, after the soft clip.

    Args:
      out: [B, n, 2c], the first c channels are a and the others the mean; [B, n, c] means where scale is "unit".
      scale: "softplus" (softplus(a + SOFTPLUS_SHIFT)), "exp" (exp(a)) or "unit" (1).
    """
    out = out.astype(jnp.float32)
    if scale == "unit":
        return Affine(out, jnp.ones_like(out))
    a, mean = jnp.split(out, 2, axis=-1)
    return Affine(mean, jax.nn.softplus(a + SOFTPLUS_SHIFT) if scale == "softplus" else jnp.exp(a))
