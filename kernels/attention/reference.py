"""The specification of every kernel in plain jnp, and the fallback where no kernel applies."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from starflow_jax.kernels.attention.masks import Causal, Full, Visibility

# Finite, so that nothing becomes NaN where a query sees nothing.
_HIDDEN = -1e30

# Queries worked on together: enough to keep a processor's caches busy, and at most so many chunks that the program of
# a long sequence stays small.
_CHUNK, _CHUNKS = 128, 16

# From so many pairs on, weights are computed anew in the backward pass rather than kept: those of 1,024 tokens are
# 4 MiB for each head of each sample.
_REMEMBERED_PAIRS = 2**20


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array | None, some: jax.Array | None, precision
) -> jax.Array:
    """`seen` says which key a query sees, `some` whether it sees any; None where it does."""
    logits = jnp.einsum("bhnd,bhsd->bhns", query, key, preferred_element_type=jnp.float32, precision=precision)
    if seen is not None:
        logits = jnp.where(seen, logits, _HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if some is not None:
        weights = jnp.where(some, weights, 0)
    return jnp.einsum("bhns,bhsd->bhnd", weights, value, precision=precision)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visibility: Visibility,
    offset: int | jax.Array = 0,
    length: int | jax.Array | None = None,
    query_chunk: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Scaled attention whose scale is already inside `query`; softmax in float32.

    A pass from slot 0 works on some queries at a time, each on the keys it can see only, and keeps no weights of a
    long sequence for the backward pass. A query that sees nothing gets zeros.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale.
      key, value: [B, k, S, d] with k dividing h (grouped-query attention: head j uses kv head j // (h / k)).
      visibility: which slots see which.
      offset: slot index of the first query (may be traced).
      length: keys from this slot on are seen by none (may be traced); None: all S are there.
      query_chunk: queries at a time; None for 128, or a sixteenth of a long sequence.
      precision: of the two products.

    Returns:
      [B, h, n, d] in the dtype of `value`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    # Queries of one group share keys: folding the group into the query axis keeps a plain batched product.
    query = query.reshape(batch, kv_heads, group, count, dim)

    def chunk(query, key, value, first: int, last: int, spans: tuple[tuple[int, int], ...]) -> jax.Array:
        part = query[:, :, :, first:last].reshape(batch, kv_heads, group * (last - first), dim)
        keys, values = (_joined([array[:, :, a:b] for a, b in spans], axis=2) for array in (key, value))
        seen = some = None
        if not isinstance(visibility, Full) or length is not None:
            rows = offset + jnp.arange(first, last)
            columns = _joined([jnp.arange(a, b) for a, b in spans], axis=0)
            seen = visibility.mask(rows[:, None], columns[None, :])
            if length is not None:
                seen &= columns < length
            seen = jnp.tile(seen, (group, 1)) if group > 1 else seen
            if not isinstance(visibility, Causal | Full) or length is not None:
                some = jnp.any(seen, axis=1, keepdims=True)
        out = _attend(part, keys, values, seen, some, precision)
        return out.reshape(batch, kv_heads, group, last - first, dim)

    size = max(_CHUNK, -(-count // _CHUNKS)) if query_chunk is None else query_chunk
    if isinstance(offset, int) and offset == 0 and count > size:
        if count * slots >= _REMEMBERED_PAIRS:
            chunk = jax.checkpoint(chunk, static_argnums=(3, 4, 5))
        bounds = [(first, min(first + size, count)) for first in range(0, count, size)]
        parts = [chunk(query, key, value, *b, visibility.spans(*b, slots)) for b in bounds]
        out = jnp.concatenate(parts, axis=3)
    else:
        out = chunk(query, key, value, 0, count, ((0, slots),))
    return out.reshape(batch, heads, count, dim)


def _joined(parts: list[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)
