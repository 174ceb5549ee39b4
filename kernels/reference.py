"""The specification of every kernel in plain jnp, and the fallback where no kernel applies."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from starflow_jax.kernels.visibility import Causal, Full, Visibility

# Finite, so that a row that sees nothing stays finite too.
_HIDDEN = -1e30


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array | None, precision) -> jax.Array:
    logits = jnp.einsum("bhnd,bhsd->bhns", query, key, preferred_element_type=jnp.float32, precision=precision)
    if seen is not None:
        logits = jnp.where(seen, logits, _HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhns,bhsd->bhnd", weights, value, precision=precision)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    visibility: Visibility,
    offset: int | jax.Array = 0,
    query_chunk: int = 128,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Scaled attention whose scale is already inside `query`; softmax in float32.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale.
      key, value: [B, k, S, d] with k dividing h (grouped-query attention: head j uses kv head j // (h / k)).
      visibility: which slots see which.
      offset: slot index of the first query (may be traced).
      query_chunk: a causal pass from slot 0 works on this many queries at a time, each on the keys it can see only.
      precision: of the two products.

    Returns:
      [B, h, n, d] in the dtype of `value`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    # Queries of one group share keys: folding the group into the query axis keeps a plain batched product.
    query = query.reshape(batch, kv_heads, group, count, dim)

    def chunk(first: int, last: int, visible_slots: int) -> jax.Array:
        part = query[:, :, :, first:last].reshape(batch, kv_heads, group * (last - first), dim)
        seen = None
        if not isinstance(visibility, Full):
            rows = offset + jnp.arange(first, last)
            seen = visibility.mask(rows[:, None], jnp.arange(visible_slots)[None, :])
            seen = jnp.tile(seen, (group, 1)) if group > 1 else seen
        out = _attend(part, key[:, :, :visible_slots], value[:, :, :visible_slots], seen, precision)
        return out.reshape(batch, kv_heads, group, last - first, dim)

    from_start = isinstance(visibility, Causal) and isinstance(offset, int) and offset == 0
    if from_start and count > query_chunk:
        bounds = range(0, count, query_chunk)
        parts = [chunk(i, min(i + query_chunk, count), min(i + query_chunk, slots)) for i in bounds]
        out = jnp.concatenate(parts, axis=3)
    else:
        out = chunk(0, count, slots)
    return out.reshape(batch, heads, count, dim)
