"""Multi-head attention with rotary positions, grouped queries, an optional cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.kernels.attention import Causal, Visibility, attention
from starflow_jax.kernels.attention.api import chosen
from starflow_jax.kernels.attention.packed import packed_attention, takes_packed
from starflow_jax.kernels.kernel_choice import Target, device_target
from starflow_jax.nn.branch_norm import Condition, Modulation, branch_norm, gated, normed
from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.divided_cache import attend_to_intervals, divides_slots
from starflow_jax.nn.linear import Compute, LayerNorm, RMSNorm
from starflow_jax.nn.quantised_linear import dense
from starflow_jax.nn.rope import Rotation
from starflow_jax.sharding.layout import ACTIVATIONS, Layout, placed

# The name under which policies of rematerialisation know the output of attention, before its projection.
OUTPUT_NAME = "attention_output"


class Attention(nnx.Module):
    """The attention branch of a layer: norm, packed projection, attention, output projection, optional post-norm."""

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray, compute: Compute):
        c = config
        into, out = jax.random.split(key)
        self.norm = branch_norm(c.norm, c.width, key, compute)
        # Packed by key/value head: its queries, its key, its value, so that a mesh shards the heads as one axis.
        grouped = (c.kv_heads, c.heads // c.kv_heads + 2, c.head_dim)
        self.qkv = dense(c.width, grouped, into, name="qkv", bias=c.bias, compute=compute)
        # Residual branches start small, so that hidden states do not grow with depth at initialisation.
        std = (2 * c.layers * c.heads * c.head_dim) ** -0.5
        self.proj = dense(c.heads * c.head_dim, c.width, out, name="proj", bias=c.bias, std=std, compute=compute)
        kind = LayerNorm if c.qk_norm == "layer" else RMSNorm
        self.query_norm = kind(c.head_dim) if c.qk_norm else None
        self.key_norm = kind(c.head_dim) if c.qk_norm else None
        self.post_norm = RMSNorm(c.width) if c.post_norm else None
        self.config = config
        self.compute = compute

    def __call__(
        self,
        h: Float[Array, "B n D"],
        *,
        rotation: Rotation | None,
        visibility: Visibility,
        temperature: float | Float[Array, ""] | Float[Array, "B"] | None = None,
        cache: KVCache | None = None,
        layer: int | Int[Array, ""] = 0,
        slot: int | Int[Array, ""] = 0,
        condition: Condition | Modulation | None = None,
    ) -> tuple[Float[Array, "B n D"], KVCache | None]:
        """The branch's output for h, and the cache with the n new keys and values at `slot`.

        Args:
          h: hidden states.
          rotation: rotary table of these n slots.
          visibility: the attention mask.
          temperature: divides the logits.
          cache: keys and values of earlier slots, or None.
          layer: index of the layer in the cache.
          slot: first slot of the n tokens.
          condition: what an adaptive norm reads.
        """
        c = self.config
        batch, count, _ = h.shape
        layout, group = self.compute.layout, c.heads // c.kv_heads
        by_slots = cache is not None and divides_slots(layout, c.kv_heads, self.compute.cache)
        x, gate = normed(self.norm, h, condition)
        if rotation is not None and temperature is None and cache is None and self._takes_packed(x, visibility):
            return gated(self._project(self._attend_packed(x, rotation, visibility)), gate), None
        packed = placed(layout, self.qkv(x), "packed")
        if by_slots:  # every device of the sequence axis needs all tokens
            packed = placed(layout, packed, "packed, gathered")
        packed = packed.transpose(0, 2, 3, 1, 4)  # [B, k, group + 2, n, d]
        heads = "heads, gathered" if by_slots else "heads"
        query = placed(layout, packed[:, :, :group].reshape(batch, c.heads, count, c.head_dim), heads)
        key, value = (placed(layout, packed[:, :, index], heads) for index in (group, group + 1))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            on_tpus = layout is not None and layout.platform == "tpu"
            query, key = (rotation(array, exchange_by_product=on_tpus) for array in (query, key))
        scale = jnp.float32(c.head_dim**-0.5)
        if temperature is not None:
            scale = jnp.reshape(scale / temperature, (-1, 1, 1, 1))
        query = (query * scale).astype(h.dtype)
        mixed, cache = self._attend(query, key, value, visibility, cache, jnp.asarray(layer), slot)
        return gated(self._project(mixed), gate), cache

    def _project(self, mixed: Float[Array, "B h n d"]) -> Float[Array, "B n D"]:
        """The branch's output for that of the heads."""
        mixed = mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)
        mixed = checkpoint_name(mixed, OUTPUT_NAME)
        out = self.proj(placed(self.compute.layout, mixed, "channels"))
        return out if self.post_norm is None else self.post_norm(out)

    def _takes_packed(self, x: Float[Array, "B n D"], visibility: Visibility) -> bool:
        """Whether kernels read the projection of x as it is, and rotate queries and keys themselves."""
        c = self.config
        if c.heads != c.kv_heads or self.query_norm is not None:
            return False
        shape = (*x.shape[:2], *self.qkv.kernel.shape[1:])
        options: dict[str, Any] = {
            "implementation": self.compute.kernels,
            "target": layout_target(self.compute.layout),
        }
        takes: bool = takes_packed(shape, self.compute.dtype, visibility=visibility, **options)
        return takes

    def _attend_packed(
        self, x: Float[Array, "B n D"], rotation: Rotation, visibility: Visibility
    ) -> Float[Array, "B h n d"]:
        """Attention of a whole sequence, over the mesh."""
        layout = self.compute.layout
        attend = functools.partial(
            packed_attention,
            adjacent=rotation.adjacent,
            scale=self.config.head_dim**-0.5,
            visibility=visibility,
            target=layout_target(layout),
            precision=self.compute.precision,
        )
        packed = placed(layout, self.qkv.product(x), "packed")
        bias = None if self.qkv.bias is None else self.qkv.bias[...]
        if layout is None:
            mixed: jax.Array = attend(packed, bias, rotation.cos, rotation.sin)
            return mixed
        return placed(layout, _packed_by_heads(layout, attend, packed, bias, rotation.cos, rotation.sin), "heads")

    def _attend(
        self,
        query: Float[Array, "B h n d"],
        key: Float[Array, "B k n d"],
        value: Float[Array, "B k n d"],
        visibility: Visibility,
        cache: KVCache | None,
        layer: Int[Array, ""],
        slot: int | Int[Array, ""],
    ) -> tuple[Float[Array, "B h n d"], KVCache | None]:
        """Attention of queries that are scaled, over the mesh, and the cache with the new keys and values."""
        layout, kernels = self.compute.layout, self.compute.kernels
        options: dict[str, Any] = {
            "implementation": None if kernels == "cudnn" and cache is not None else kernels,
            "target": layout_target(layout),
        }
        precision = self.compute.precision
        if layout is not None and cache is not None and divides_slots(layout, key.shape[1], self.compute.cache):
            assert visibility == Causal()  # the rule of every cache
            return attend_to_intervals(
                layout, query, key, value, cache, layer=layer, slot=slot, precision=precision, **options
            )
        cache_layer = None
        if cache is not None:
            cache = cache.write(layer, slot, key, value)
            key, value, cache_layer = cache.keys, cache.values, layer
        options["visibility"] = visibility
        attend = functools.partial(attention, precision=precision, **options)
        if layout is None or chosen(query, key, value, offset=slot, layer=cache_layer, **options) == "xla":
            mixed = attend(query, key, value, offset=slot, layer=cache_layer)
        else:
            mixed = _by_heads(layout, attend, query, key, value, slot, cache_layer)
        return placed(layout, mixed, "heads"), cache


def layout_target(layout: Layout | None) -> Target:
    """The devices that a program is compiled for: those of the layout, else the default ones."""
    return device_target(None if layout is None else layout.mesh.devices.flat[0])


def _by_heads(
    layout: Layout,
    attend: Callable[..., jax.Array],
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    slot: int | Int[Array, ""],
    cache_layer: jax.Array | None,
) -> Float[Array, "B h n d"]:
    """Attention over a mesh by `shard_map`: each device runs the kernel on its heads and samples."""
    leading = () if cache_layer is None else (None,)
    cuts = ACTIVATIONS["heads"]
    if query.shape[1] != key.shape[-3] and key.shape[-3] % layout.size(cuts[1]):
        # Queries that share a key stay together, so heads are sharded over one of the axes, or over none.
        fits = [axis for axis in ("tensor", "sequence") if key.shape[-3] % layout.size(axis) == 0]
        cuts = (cuts[0], max(fits, key=layout.size, default=None), *cuts[2:])
    query_spec = layout.sharding(query.shape, cuts).spec
    key_spec = layout.sharding(key.shape, (*leading, *cuts)).spec
    # Static indices stay static, so that the mask is a constant of the program.
    indices: dict[str, int | Int[Array, ""]] = {"offset": slot} | (
        {} if cache_layer is None else {"layer": cache_layer}
    )
    traced = {name: jnp.asarray(n) for name, n in indices.items() if not isinstance(n, int)}
    static = {name: n for name, n in indices.items() if name not in traced}

    def local(query: jax.Array, key: jax.Array, value: jax.Array, traced: dict[str, jax.Array]) -> jax.Array:
        return attend(query, key, value, **static, **traced)

    replicated = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(query_spec, key_spec, key_spec, replicated),
        out_specs=query_spec,
        check_vma=False,
    )
    return mapped(query, key, value, traced)


def _packed_by_heads(
    layout: Layout,
    attend: Callable[..., jax.Array],
    packed: Float[Array, "B n h 3 d"],
    bias: Float[Array, "h 3 d"] | None,
    cos: Float[Array, "n half"],
    sin: Float[Array, "n half"],
) -> Float[Array, "B h n d"]:
    """As `_by_heads`, of the packed projection of a whole sequence."""
    batch, count, heads, _, dim = packed.shape
    cuts = ACTIVATIONS["heads"]
    whole = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        attend,
        mesh=layout.mesh,
        in_specs=(
            layout.sharding(packed.shape, (cuts[0], None, cuts[1])).spec,
            layout.sharding(packed.shape[2:], cuts[1:2]).spec,
            whole,
            whole,
        ),
        out_specs=layout.sharding((batch, heads, count, dim), cuts).spec,
        check_vma=False,
    )
    bias = jnp.zeros(packed.shape[2:], jnp.float32) if bias is None else bias
    mixed: jax.Array = mapped(packed, bias, cos, sin)
    return mixed
