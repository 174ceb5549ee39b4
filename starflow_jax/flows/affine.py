"""The element of the family: x = mean + scale * z."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.kernels.jacobi_update import reference as jacobi_reference


@flax.struct.dataclass
class Affine:
    """mean, scale: [B, n, c] float32, scale > 0."""

    mean: jax.Array
    scale: jax.Array

    def inverse(self, z: jax.Array) -> jax.Array:
        """x = mean + scale * z."""
        return self.mean + self.scale * z

    def update(self, z: jax.Array, x: jax.Array, span: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `prediction.Estimate`."""
        return jacobi_reference.moved(self.inverse(z), x, span)

    def forward(self, x: jax.Array) -> jax.Array:
        """z = (x - mean) / scale."""
        return (x - self.mean) / self.scale

    @property
    def logdet(self) -> jax.Array:
        """log |dz/dx| of every token and channel."""
        return -jnp.log(self.scale)


def to_affine(out: jax.Array, kind: str) -> Affine:
    """Mean and scale of the network's output, clipped already; see `jacobi_reference.mean_and_scale`."""
    return Affine(*jacobi_reference.mean_and_scale(out, kind))
