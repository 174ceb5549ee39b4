"""The element of the family: x = mean + scale * z."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

# softplus^-1(1), so that a = 0 means scale 1 (specification, section 1.5).
SOFTPLUS_OF_ONE = 0.541324854612918


@flax.struct.dataclass
class Affine:
    """mean, scale: [B, n, c] float32, scale > 0."""

    mean: jax.Array
    scale: jax.Array

    def inverse(self, z: jax.Array) -> jax.Array:
        """x = mean + scale * z."""
        return self.mean + self.scale * z

    def forward(self, x: jax.Array) -> jax.Array:
        """z = (x - mean) / scale."""
        return (x - self.mean) / self.scale

    @property
    def logdet(self) -> jax.Array:
        """log |dz/dx| of every token and channel."""
        return -jnp.log(self.scale)


def soft_clip(out: jax.Array, bound: float) -> jax.Array:
    """bound * tanh(out / bound); unchanged where bound is 0."""
    return bound * jnp.tanh(out / bound) if bound > 0 else out


def to_affine(out: jax.Array, kind: str) -> Affine:
    """Mean and scale from the network's output [B, n, 2c] (first half a, second half mean; [B, n, c] for "unit")."""
    out = out.astype(jnp.float32)
    if kind == "unit":
        return Affine(out, jnp.ones_like(out))
    a, mean = jnp.split(out, 2, axis=-1)
    scale = jax.nn.softplus(a + SOFTPLUS_OF_ONE) if kind == "softplus" else jnp.exp(a)
    return Affine(mean, scale)
