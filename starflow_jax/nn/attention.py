"""Multi-head attention with rotary positions, grouped queries, an optional cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from starflow_jax.config.flow import TransformerConfig
from starflow_jax.kernels import Visibility, attention
from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.linear import Compute, Linear, RMSNorm, make_norm
from starflow_jax.nn.rope import Rotation
from starflow_jax.parallel.layout import ACTIVATIONS, Layout, placed


class Attention(nnx.Module):
    """The attention branch of a layer: norm, packed projection, attention, output projection, optional post-norm."""

    def __init__(self, config: TransformerConfig, key: jax.Array, compute: Compute):
        c = config
        into, out = jax.random.split(key)
        self.norm = make_norm(c.norm, c.width)
        # By key/value head: the queries that read it, the key, the value. A mesh may so part the heads in one cut.
        grouped = (c.kv_heads, c.heads // c.kv_heads + 2, c.head_dim)
        self.qkv = Linear(c.width, grouped, into, name="qkv", bias=c.bias, compute=compute)
        # Residual branches start small, so that depth does not blow up the first hidden states.
        std = (2 * c.layers * c.heads * c.head_dim) ** -0.5
        self.proj = Linear(c.heads * c.head_dim, c.width, out, name="proj", bias=c.bias, std=std, compute=compute)
        self.query_norm = RMSNorm(c.head_dim) if c.qk_norm else None
        self.key_norm = RMSNorm(c.head_dim) if c.qk_norm else None
        self.post_norm = RMSNorm(c.width) if c.post_norm else None
        self.config = config
        self.compute = compute

    def __call__(
        self,
        h: jax.Array,
        *,
        rotation: Rotation | None,
        visibility: Visibility,
        temperature: float | jax.Array | None = None,
        cache: KVCache | None = None,
        layer: jax.Array | int = 0,
        slot: int | jax.Array = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """The branch's output for h: [B, n, D], and the cache with the n new keys and values at `slot`.

        temperature: [B] or scalar; divides the logits.
        """
        c = self.config
        batch, count, _ = h.shape
        layout, group = self.compute.layout, c.heads // c.kv_heads
        packed = placed(layout, self.qkv(self.norm(h)), "packed").transpose(0, 2, 3, 1, 4)  # [B, k, group + 2, n, d]
        query = placed(layout, packed[:, :, :group].reshape(batch, c.heads, count, c.head_dim), "heads")
        key, value = (placed(layout, packed[:, :, place], "heads") for place in (group, group + 1))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            on_tpus = layout is not None and layout.platform == "tpu"
            query, key = (rotation(array, exchange_by_product=on_tpus) for array in (query, key))
        scale = jnp.float32(c.head_dim**-0.5)
        if temperature is not None:
            scale = jnp.reshape(scale / temperature, (-1, 1, 1, 1))
        query = (query * scale).astype(h.dtype)
        if cache is not None:
            cache, key, value = cache.write(jnp.asarray(layer), slot, key, value)
        if layout is not None and layout.platform == "tpu" and cache is None and h.dtype == jnp.bfloat16:
            mixed = _on_tpus(layout, query, key, value, visibility)
        else:
            mixed = attention(query, key, value, visibility=visibility, offset=slot, precision=self.compute.precision)
        mixed = placed(layout, mixed, "heads").transpose(0, 2, 1, 3).reshape(batch, count, -1)
        out = self.proj(placed(layout, mixed, "channels"))
        return (out if self.post_norm is None else self.post_norm(out)), cache


def _on_tpus(layout: Layout, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    """Attention of whole sequences by the kernel, every device on its own heads and samples."""
    # Where the kernel runs only: its module loads Pallas.
    from starflow_jax.kernels import attention_tpu

    of_query, of_key = (layout.sharding(array.shape, ACTIVATIONS["heads"]).spec for array in (query, key))
    local = functools.partial(attention_tpu.attention, visibility=visibility)
    mapped = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(of_query, of_key, of_key), out_specs=of_query, check_vma=False
    )
    return mapped(query, key, value)
