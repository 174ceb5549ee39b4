"""The reference implementation of attention in plain jnp, which is also the fallback where no kernel applies."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals, select_layer
from starflow_jax.kernels.attention.masks import Causal, Full, Visibility
from starflow_jax.kernels.kernel_choice import Support

# Finite, so that a query without visible keys does not give NaN. The lse of such a query is the same number.
_MASKED = UNSEEN = -1e30

# Queries of a chunk: enough to keep a processor's caches busy. The loops of a long sequence take more on accelerators.
# Such a sequence has at most so many groups of chunks, each of which is a loop over the keys that its chunks see; with
# a window, twice as many, since the chunks of a group then have fewer keys in common.
_CHUNK, _ACCELERATOR_CHUNK, _MAX_GROUPS = 128, 512, 8

# On a CPU, a call at a traced offset into a cache of at least so many slots reads the filled part of the cache only,
# rounded up to one of a few static lengths, each a branch of the program.
_MIN_CUT_SLOTS, _MAX_LENGTHS, _LENGTH_MULTIPLE = 128, 5, 32

# From this number of pairs on, a sequence is long: the backward pass recomputes the weights, chunk after chunk, instead
# of storing them. Those of 1,024 tokens are 4 MiB for each head of each sample.
_MAX_STORED_PAIRS = 2**20


def stores_weights(queries: int, slots: int) -> bool:
    """Whether the backward pass of a whole sequence reads stored attention weights instead of recomputing them."""
    return queries * slots < _MAX_STORED_PAIRS


def _attend(
    query: Float[Array, "B h n d"],
    key: Float[Array, "B k S d"],
    value: Float[Array, "B k S d"],
    mask: Bool[Array, "n S"] | None,
    nonempty: Bool[Array, "n 1"] | None,
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "B h n d"]:
    """`mask`: which keys are visible to a query; `nonempty`: whether any is. None where all are."""
    logits = jnp.einsum("bhnd,bhsd->bhns", query, key, preferred_element_type=jnp.float32, precision=precision)
    if mask is not None:
        logits = jnp.where(mask, logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if nonempty is not None:
        weights = jnp.where(nonempty, weights, 0)
    return jnp.einsum("bhns,bhsd->bhnd", weights, value, precision=precision)


def attention_with_lse(
    query: Float[Array, "B h n d"],
    key: Float[Array, "B k S d"],
    value: Float[Array, "B k S d"],
    *,
    visibility: Visibility,
    offset: int | Int[Array, ""] = 0,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n"]]:
    """`attention` in one chunk, and the log of the sum of exp(logits) in float32.

    Args:
      query, key, value, visibility, precision: as in `attention`.
      offset: slot of the first query (may be traced), negative where it is before the first key.

    Returns:
      [B, h, n, d] in the dtype of `value`, and [B, h, n]; for a query without visible keys zero and -1e30.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    folded = query.reshape(batch, kv_heads, group * count, dim)
    logits = jnp.einsum("bhnd,bhsd->bhns", folded, key, preferred_element_type=jnp.float32, precision=precision)
    mask = visibility.mask((offset + jnp.arange(count))[:, None], jnp.arange(slots)[None, :])
    logits = jnp.where(jnp.tile(mask, (group, 1)), logits, _MASKED)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # Divided by their sum after the product, so that a compiler reads the logits twice and the weights twice.
    weights = jnp.exp(logits - largest).astype(value.dtype)
    total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
    out = jnp.einsum("bhns,bhsd->bhnd", weights, value, preferred_element_type=jnp.float32, precision=precision)
    sees = largest > _MASKED / 2
    out = jnp.where(sees, out / total, 0).astype(value.dtype)
    lse = jnp.where(sees, largest + jnp.log(total), UNSEEN)
    return out.reshape(query.shape), lse.reshape(batch, heads, count)


def attention(
    query: Float[Array, "B h n d"],
    key: Float[Array, "B k S d"],
    value: Float[Array, "B k S d"],
    *,
    visibility: Visibility,
    offset: int | Int[Array, ""] = 0,
    length: int | Int[Array, ""] | None = None,
    query_chunk: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B h n d"]:
    """Scaled attention whose scale is already inside `query`; softmax in float32.

    A pass from slot 0 takes the queries in chunks, each with the keys visible to it only. Those of a long sequence
    follow one another in loops, and their weights are not stored for the backward pass: memory grows in proportion to
    the length. The output of a query without visible keys is zero.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale.
      key, value: [B, k, S, d] with k dividing h (grouped-query attention: head j uses kv head j // (h / k)).
      visibility: which keys are visible to a query.
      offset: slot of the first query (may be traced).
      length: keys from this slot on are visible to no query (may be traced); None: all S are valid.
      query_chunk: queries of a chunk; None for 128.
      precision: of the two products.

    Returns:
      [B, h, n, d] in the dtype of `value`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    # Queries of one group share keys: folding the group into the query axis keeps a plain batched product.
    query = query.reshape(batch, kv_heads, group, count, dim)

    def chunk(
        part: Float[Array, "B k group n d"],
        key: Float[Array, "B k S d"],
        value: Float[Array, "B k S d"],
        first: int | Int[Array, ""],
        spans: tuple[tuple[int, int], ...],
    ) -> Float[Array, "B k group n d"]:
        """The output of the queries from `first` on, which see keys of `spans` only."""
        size = part.shape[3]
        keys, values = (_concatenate([array[:, :, a:b] for a, b in spans], axis=2) for array in (key, value))
        mask = nonempty = None
        if not isinstance(visibility, Full) or length is not None:
            rows = offset + first + jnp.arange(size)
            columns = _concatenate([jnp.arange(a, b) for a, b in spans], axis=0)
            mask = visibility.mask(rows[:, None], columns[None, :])
            if length is not None:
                mask &= columns < length
            mask = jnp.tile(mask, (group, 1)) if group > 1 else mask
            if not isinstance(visibility, Causal | Full) or length is not None:
                nonempty = jnp.any(mask, axis=1, keepdims=True)
        folded = part.reshape(batch, kv_heads, group * size, dim)
        return _attend(folded, keys, values, mask, nonempty, precision).reshape(part.shape)

    def group_of_chunks(first: int, last: int) -> Float[Array, "B k group n d"]:
        """The output of queries first .. last - 1, chunk after chunk."""
        spans = visibility.spans(first, last, slots)
        chunks = -(-(last - first) // size)
        padding = first + chunks * size - last
        padded = jnp.pad(query[:, :, :, first:last], ((0, 0), (0, 0), (0, 0), (0, padding), (0, 0)))
        parts = jnp.moveaxis(padded.reshape(batch, kv_heads, group, chunks, size, dim), 3, 0)

        @functools.partial(jax.checkpoint, prevent_cse=False)  # which a loop prevents anyway
        def step(part: jax.Array, start: jax.Array) -> jax.Array:
            return chunk(part, key, value, start, spans)

        starts = first + size * jnp.arange(chunks)
        _, outs = jax.lax.scan(lambda carry, inputs: (carry, step(*inputs)), None, (parts, starts))
        outs = jnp.moveaxis(outs, 0, 3).reshape(padded.shape)
        return outs[:, :, :, : last - first]

    size = _CHUNK if query_chunk is None else query_chunk
    if not isinstance(offset, int) or offset != 0 or count <= size:
        out = chunk(query, key, value, 0, ((0, slots),))
    elif stores_weights(count, slots):
        bounds = [(first, min(first + size, count)) for first in range(0, count, size)]
        parts = [chunk(query[:, :, :, a:b], key, value, a, visibility.spans(a, b, slots)) for a, b in bounds]
        out = jnp.concatenate(parts, axis=3)
    else:
        groups = _MAX_GROUPS if visibility.bounds(0, np)[0] is None else 2 * _MAX_GROUPS
        step = size * -(-count // (size * groups))
        out = jnp.concatenate([group_of_chunks(a, min(a + step, count)) for a in range(0, count, step)], axis=3)
    return out.reshape(batch, heads, count, dim)


def _concatenate(parts: list[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


@dataclasses.dataclass(frozen=True)
class ReferenceAttention:
    """The reference as a `call.AttentionKernel`: every platform, every call."""

    def supports(self, call: AttentionCall) -> Support:
        """See `AttentionKernel`."""
        return Support()

    def prepare(self, call: AttentionCall) -> AttentionCall:
        """See `AttentionKernel`."""
        return call

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "*layers B k S d"],
        value: Float[Array, "*layers B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], None]:
        """See `AttentionKernel`."""
        attend = _bound(call, bounds, call.precision)

        def attend_to_first(slots: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return attend(query, *(select_layer(cache[..., :slots, :], bounds) for cache in (key, value)))

        lengths = _cache_lengths(call)
        if len(lengths) == 1:
            return attend_to_first(call.num_slots, query, key, value), None
        last_query = jnp.asarray(bounds.offset, jnp.int32) + call.num_queries - 1
        # Slots from `end` on are visible to no query.
        end = jnp.maximum(call.rule.bounds(last_query)[1], call.rule.prefix)
        branch = jnp.sum(end > jnp.asarray(lengths[:-1]))
        branches = [functools.partial(attend_to_first, slots) for slots in lengths]
        return jax.lax.switch(branch, branches, query, key, value), None

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """See `AttentionKernel`; kernels without a backward pass use this one."""
        attend = _bound(call, bounds, "highest" if call.exact else None)
        dq, dk, dv = jax.vjp(attend, residuals.query, residuals.key, residuals.value)[1](do)
        return dq, dk, dv


def _cache_lengths(call: AttentionCall) -> list[int]:
    """The lengths of cache that a call may read, in increasing order; the last is the whole cache."""
    slots = call.num_slots
    if call.target.platform != "cpu" or call.offset is not None or slots < _MIN_CUT_SLOTS:
        return [slots]
    step = -(-slots // (_MAX_LENGTHS * _LENGTH_MULTIPLE)) * _LENGTH_MULTIPLE
    return [*range(step, slots, step), slots]


def _bound(call: AttentionCall, bounds: Bounds, precision: jax.lax.PrecisionLike) -> Any:
    """`attention` as a function of query, key and value."""
    query_chunk = call.query_chunk
    if query_chunk is None and call.target.platform != "cpu" and not stores_weights(call.num_queries, call.num_slots):
        query_chunk = _ACCELERATOR_CHUNK
    return functools.partial(
        attention,
        visibility=call.rule,
        offset=bounds.offset,
        length=bounds.length,
        query_chunk=query_chunk,
        precision=precision,
    )
