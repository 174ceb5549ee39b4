"""The key/value cache, an immutable pytree."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class KVCache:
    """Rotated keys, and values, of all layers; keys, values: [layers, B, k, S, d].

    A slot is visible only to queries at or after it, so that slots after the last write may hold any value. Writing
    the same slots again is therefore the only roll-back that Jacobi iteration needs.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, slots: int, dim: int, dtype: str) -> KVCache:
        """A cache of zeros."""
        shape = (layers, batch, heads, slots, dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(
        self,
        layer: Int[Array, ""],
        slot: int | Int[Array, ""],
        key: Float[Array, "B k n d"],
        value: Float[Array, "B k n d"],
    ) -> KVCache:
        """The cache with key, value [B, k, n, d] at `slot` of `layer`."""
        start = (layer, 0, 0, slot, 0)
        keys = jax.lax.dynamic_update_slice(self.keys, key[None].astype(self.keys.dtype), start)
        values = jax.lax.dynamic_update_slice(self.values, value[None].astype(self.values.dtype), start)
        return KVCache(keys, values)
