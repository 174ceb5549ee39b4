"""A key/value cache whose slots are divided over the sequence axis of a mesh, so that one sample uses many devices.

Heads are divided over the tensor axis. Every device of the sequence axis holds an interval of slots of its heads: it
writes the new keys and values that fall into it, and attends to it with all queries of a chunk. Its output and the log
of its sum of weights go to the device that continues with the token (or, where the tokens of a chunk do not divide, to
all), which adds up the outputs by these weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.attention import Causal
from starflow_jax.kernels.attention.api import partial_attention
from starflow_jax.nn.cache import KVCache
from starflow_jax.sharding.layout import BATCH, Cut, Layout

AXIS = "sequence"


def divides_slots(layout: Layout | None, kv_heads: int, mode: str) -> bool:
    """Whether caches of that many heads are divided along their slots: `FlowConfig.cache`."""
    return layout is not None and is_by_slots(kv_heads, layout.size("tensor"), layout.size(AXIS), mode)


def is_by_slots(kv_heads: int, tensor: int, sequence: int, mode: str) -> bool:
    """The same, for axes of these sizes."""
    return sequence > 1 and (mode == "slots" or kv_heads % (tensor * sequence) != 0)


def cache_cuts(layout: Layout, kv_heads: int, mode: str) -> tuple[Cut, ...]:
    """The mesh axes of a cache [layers, B, k, S, d]."""
    if divides_slots(layout, kv_heads, mode):
        return (None, BATCH, _heads(layout, kv_heads), AXIS, None)
    return (None, BATCH, ("tensor", AXIS), None, None)


def attend_to_intervals(
    layout: Layout,
    query: Float[Array, "B h n d"],
    key: Float[Array, "B k n d"],
    value: Float[Array, "B k n d"],
    cache: KVCache,
    *,
    layer: Int[Array, ""],
    slot: int | Int[Array, ""],
    **options: Any,
) -> tuple[Float[Array, "B h n d"], KVCache]:
    """Causal attention of a chunk to a layer of the cache, in which the chunk is written at `slot` first.

    Args:
      layout: of the mesh.
      query, key, value: of the chunk's tokens; the query is already multiplied by the softmax scale.
      cache: with a number of slots that the sequence axis divides.
      layer: which one to read and write.
      slot: of the first token.
      options: of `kernels.attention.api.partial_attention`: implementation, target, precision.

    Returns:
      [B, h, n, d] in the dtype of the cache, and the cache.
    """
    heads = _heads(layout, key.shape[1])
    tokens = AXIS if query.shape[2] % layout.size(AXIS) == 0 else None

    def local(
        query: jax.Array, key: jax.Array, value: jax.Array, cache: KVCache, layer: jax.Array, slot: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        offset = slot - jax.lax.axis_index(AXIS) * cache.keys.shape[3]
        cache = KVCache(
            _written(cache.keys, key, layer, offset),
            _written(cache.values, value, layer, offset),
        )
        out, lse = partial_attention(
            query, cache.keys, cache.values, visibility=Causal(), offset=offset, layer=layer, **options
        )
        return _merged(out, lse, split=tokens is not None), cache

    chunk = layout.sharding(query.shape, (BATCH, heads)).spec
    new = layout.sharding(key.shape, (BATCH, heads)).spec
    stored = layout.sharding(cache.keys.shape, (None, BATCH, heads, AXIS)).spec
    replicated = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(chunk, new, new, stored, replicated, replicated),
        out_specs=(layout.sharding(query.shape, (BATCH, heads, tokens)).spec, stored),
        check_vma=False,
    )
    out, cache = mapped(query, key, value, cache, layer, jnp.asarray(slot, jnp.int32))
    return out, cache


def _heads(layout: Layout, kv_heads: int) -> Cut:
    """The axis of the heads; none where it does not divide those that share keys."""
    return "tensor" if kv_heads % layout.size("tensor") == 0 else None


def _written(
    cache: Float[Array, "layers B k S d"], new: Float[Array, "B k n d"], layer: Int[Array, ""], offset: Int[Array, ""]
) -> Float[Array, "layers B k S d"]:
    """The interval with those of the chunk's keys or values that fall into it.

    offset: slot of the chunk's first token in the interval; it may be before its start or behind its end.
    """
    count, size = new.shape[2], cache.shape[3]
    width = min(count, size)
    first = jnp.clip(offset, 0, size - width)
    token = first - offset + jnp.arange(width)  # of each slot that is written
    padded = jnp.pad(new.astype(cache.dtype), ((0, 0), (0, 0), (width, width), (0, 0)))
    moved = jax.lax.dynamic_slice_in_dim(padded, width + first - offset, width, axis=2)
    start = (layer, 0, 0, first, 0)
    old = jax.lax.dynamic_slice(cache, start, (1, *cache.shape[1:3], width, cache.shape[4]))
    fits = ((token >= 0) & (token < count))[:, None]
    return jax.lax.dynamic_update_slice(cache, jnp.where(fits, moved[None], old), start)


def _merged(out: Float[Array, "B h n d"], lse: Float[Array, "B h n"], *, split: bool) -> Float[Array, "B h m d"]:
    """The sum of all intervals' outputs by their weights, for this device's share of the tokens or for all of them.

    One collective moves both: the float32 `lse` travels as further channels of the output. They are moved as integers,
    since a compiler may convert other numbers.
    """
    dtype, dim = out.dtype, out.shape[3]
    bits = {2: jnp.uint16, 4: jnp.uint32}[dtype.itemsize]
    extra = jax.lax.bitcast_convert_type(lse, bits).reshape(*lse.shape, -1)
    packed = jnp.concatenate([jax.lax.bitcast_convert_type(out, bits), extra], axis=-1)
    if split:
        devices = jax.lax.axis_size(AXIS)
        shares = packed.reshape(*packed.shape[:2], devices, -1, packed.shape[3])
        parts = jax.lax.all_to_all(shares, AXIS, split_axis=2, concat_axis=2)
    else:
        parts = jax.lax.all_gather(packed, AXIS, axis=2)
    extra = parts[..., dim:]
    weight = jax.lax.bitcast_convert_type(extra if extra.shape[-1] > 1 else extra[..., 0], jnp.float32)
    weight = jax.nn.softmax(weight, axis=2)[..., None]
    outs = jax.lax.bitcast_convert_type(parts[..., :dim], dtype).astype(jnp.float32)
    return jnp.sum(weight * outs, axis=2).astype(dtype)
