"""Rotary positions inside attention kernels: tables of channels by slots, and the reference of what kernels compute.

A rotated channel is x cos + partner sin, where the partner is the other channel of its pair and `sin` has the sign of
the channel. The inverse rotation, which gradients need, has the sign reversed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The static description of the rotation of queries and keys.

    Attributes:
      adjacent: whether pairs are neighbouring channels, else the two halves of a head.
      scale: of the softmax, multiplied into the rotated queries.
    """

    adjacent: bool
    scale: float

    def partners(self, dim: int) -> Int[np.ndarray, "d"]:
        """For each of `dim` channels, the index of the other channel of its pair."""
        channels = np.arange(dim)
        return channels ^ 1 if self.adjacent else (channels + dim // 2) % dim

    def tables(self, cos: Float[Array, "n half"], sin: Float[Array, "n half"]) -> Float[Array, "2 d n"]:
        """cos and signed sin of each channel and slot, float32, from those of each slot and pair."""
        if self.adjacent:
            cos, sin = (jnp.repeat(table, 2, axis=-1) for table in (cos, sin))
        else:
            cos, sin = (jnp.concatenate([table, table], axis=-1) for table in (cos, sin))
        channels = np.arange(cos.shape[-1])
        sign = np.where(channels < self.partners(len(channels)), -1.0, 1.0)
        return jnp.stack([cos, sin * jnp.asarray(sign, jnp.float32)]).astype(jnp.float32).swapaxes(1, 2)

    def rotate(self, x: Float[Array, "B h d n"], tables: Float[Array, "2 d n"]) -> Float[Array, "B h d n"]:
        """The reference: x rotated, in float32."""
        h = x.astype(jnp.float32)
        return h * tables[0] + h[..., self.partners(x.shape[-2]), :] * tables[1]

    def unpack(
        self, packed: Float[Array, "3 B h d n"], tables: Float[Array, "2 d n"]
    ) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n d"], Float[Array, "B h n d"]]:
        """The reference: rotated and scaled queries, rotated keys, and values, in the dtype of `packed`."""
        query = (self.rotate(packed[0], tables) * self.scale).astype(packed.dtype)
        key = self.rotate(packed[1], tables).astype(packed.dtype)
        return query.swapaxes(2, 3), key.swapaxes(2, 3), packed[2].swapaxes(2, 3)
