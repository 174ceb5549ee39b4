"""Attention, computed by a kernel, by cuDNN or by the reference: the operation that the networks call."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.attention.call import AttentionCall, AttentionKernel, Bounds, select_layer
from starflow_jax.kernels.attention.cudnn import CudnnAttention
from starflow_jax.kernels.attention.derivatives import attend
from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.reference import UNSEEN, ReferenceAttention, attention_with_lse
from starflow_jax.kernels.kernel_choice import (
    CUDNN_PLATFORM,
    UNTIMED_ON_GPUS,
    Implementation,
    Target,
    choose,
    device_target,
)


def attention(
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    *,
    visibility: Visibility,
    offset: int | Int[Array, ""] = 0,
    length: int | Int[Array, ""] | None = None,
    layer: int | Int[Array, ""] | None = None,
    implementation: Implementation = None,
    target: Target | None = None,
    tiles: Any = None,
    precision: jax.lax.PrecisionLike = None,
    query_chunk: int | None = None,
    interpret: Any = False,
) -> Float[Array, "B h n d"]:
    """Scaled attention whose scale (and temperature) is already inside `query`; sums in float32.

    The output of a query without visible keys is zero. `derivatives` describes differentiation.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale and divided by the temperature.
      key, value: [B, k, S, d] with k dividing h (grouped-query attention: head j uses kv head j // (h / k)).
      visibility: which keys are visible to a query.
      offset: slot of the first query (may be traced).
      length: keys from this slot on are visible to no query (may be traced); None: all S are valid.
      layer: if given, key and value are the caches of all layers, [layers, B, k, S, d], of which this one is read.
      implementation: "xla", "pallas", "cudnn", or None for the rule of `kernel_choice`.
      target: the devices that the program is compiled for; None: those that programs without shardings run on.
      tiles: block sizes of the kernel (`tiling.Tiles`, on GPUs `gpu_blocks.Blocks`); None: by the model of `tiling`.
      precision: of float32 products; kernels compute them in float32 unless it is the lowest.
      query_chunk: queries of a chunk of the reference.
      interpret: with implementation="pallas", run the kernel of `target` on any device, slowly; with "cudnn", plain jnp
        in the place of the library.

    Returns:
      [B, h, n, d] in the dtype of `value`.

    Raises:
      ValueError: arrays that do not fit each other; invalid tiles; no kernel supports the call, or not cuDNN, and
        `implementation` requires it.
    """
    _check_shapes(query, key, value, layer)
    target = device_target() if target is None else target
    options = {"tiles": tiles, "precision": precision, "query_chunk": query_chunk, "interpret": interpret}
    call = _describe(query, key, value, visibility, target, Bounds(offset, length, layer), **options)
    name, kernel = select(call, implementation)
    if name == "xla":
        return ReferenceAttention().forward(call, query, key, value, Bounds(offset, length, layer))[0]
    call, slots = kernel.prepare(call), call.num_slots
    length = slots if length is None else min(length, slots) if isinstance(length, int) else jnp.minimum(length, slots)
    if call.num_slots > slots:
        padding = ((0, 0), (0, 0), (0, call.num_slots - slots), (0, 0))
        key, value = (jnp.pad(array, padding) for array in (key, value))
    traced = jnp.stack([jnp.asarray(n, jnp.int32) for n in (offset, length, 0 if layer is None else layer)])
    return attend(kernel, call, query, key, value, traced)[0]


def partial_attention(
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    *,
    visibility: Visibility,
    offset: int | Int[Array, ""],
    layer: int | Int[Array, ""] | None = None,
    implementation: Implementation = None,
    target: Target | None = None,
    precision: jax.lax.PrecisionLike = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n"]]:
    """Attention to a part of all keys, and the weight by which the results of several parts are merged.

    The attention to all is the sum of the parts' outputs, weighted by the softmax of their `lse` over the parts. TPUs
    run the kernel of longer chunks, if it supports the call, and everything else the reference.

    Args:
      query, key, value, layer, implementation, target, precision, interpret: as in `attention`; keys are those of the
        part.
      visibility: as in `attention`, a rule without a prefix that is the same wherever slots are counted from.
      offset: slot of the first query, counted from the first key of the part; may be traced, and negative.

    Returns:
      [B, h, n, d] in the dtype of `value`, and lse [B, h, n] float32, the log of the sum of exp(logits). For a query
      that sees no key of the part, zero and -1e30.

    Raises:
      ValueError: as `attention`; or `implementation` is "pallas" where no kernel gives `lse`.
    """
    _check_shapes(query, key, value, layer)
    target = device_target() if target is None else target
    slots = key.shape[-2]
    bounds = Bounds(offset, slots, layer)
    call = _describe(query, key, value, visibility, target, bounds, precision=precision, interpret=interpret)
    name, kernel = select(call, implementation)
    if name != "pallas" or target.platform != "tpu" or _is_decoding(call):
        if implementation == "pallas":
            raise ValueError(
                "implementation='pallas' was requested. Attention to a part of a cache (flow.cache) has a kernel for "
                f"TPUs and longer chunks alone, got {query.shape[2]} queries on a {target.platform}"
            )
        key, value = (select_layer(cache, bounds) for cache in (key, value))
        return attention_with_lse(query, key, value, visibility=visibility, offset=offset, precision=precision)
    out, lse = kernel.forward(kernel.prepare(call), query, key, value, bounds)
    start, end = visibility.bounds(jnp.asarray(offset, jnp.int32) + jnp.arange(query.shape[2]))
    sees = jnp.minimum(end, slots) > (0 if start is None else jnp.maximum(start, 0))
    return out, jnp.where(sees, lse.reshape(query.shape[:3]), UNSEEN)


def _is_decoding(call: AttentionCall) -> bool:
    """Whether `kernel_for` returns the kernel of a few queries, which does not give lse."""
    from starflow_jax.kernels.attention.tpu_decoding import TPUDecoding

    return bool(TPUDecoding().supports(call))


def chosen(
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    *,
    visibility: Visibility,
    offset: int | Int[Array, ""] = 0,
    layer: int | Int[Array, ""] | None = None,
    implementation: Implementation = None,
    target: Target,
) -> Literal["xla", "pallas", "cudnn"]:
    """The implementation that `attention` runs; only shapes and dtypes of the arrays matter."""
    call = _describe(query, key, value, visibility, target, Bounds(offset, None, layer))
    return select(call, implementation)[0]


def _check_shapes(
    query: Float[Array, "..."], key: Float[Array, "..."], value: Float[Array, "..."], layer: int | Int[Array, ""] | None
) -> None:
    axes = 4 if layer is None else 5
    fits = len(query.shape) == 4 and len(key.shape) == len(value.shape) == axes
    if fits:
        batch, heads, _, dim = query.shape
        fits = key.shape[:-1] == value.shape[:-1] and (key.shape[-4], key.shape[-1]) == (batch, dim)
        fits = fits and key.shape[-3] > 0 and heads % key.shape[-3] == 0
    if not fits:
        key_shape = "[B, k, S, d]" if layer is None else "[layers, B, k, S, d]"
        raise ValueError(
            f"query must be [B, h, n, d] and key and value {key_shape} with k dividing h, "
            f"got {query.shape}, {key.shape}, {value.shape}"
        )


def _describe(
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    rule: Visibility,
    target: Target,
    bounds: Bounds,
    **options: Any,
) -> AttentionCall:
    (_, heads, queries, dim), (kv_heads, slots) = query.shape, key.shape[-3:-1]
    length = slots if bounds.length is None else bounds.length
    return AttentionCall(
        rule,
        target,
        num_heads=heads,
        num_kv_heads=kv_heads,
        num_queries=queries,
        num_slots=slots,
        head_dim=dim,
        dtypes=(query.dtype, key.dtype, value.dtype),
        offset=bounds.offset if isinstance(bounds.offset, int) else None,
        length=min(length, slots) if isinstance(length, int) else None,
        stacked=bounds.layer is not None,
        **options,
    )


def select(
    call: AttentionCall, implementation: Implementation
) -> tuple[Literal["xla", "pallas", "cudnn"], AttentionKernel]:
    """The implementation's name, and cuDNN or the kernel of the platform (the reference where there is none)."""
    cudnn = CudnnAttention()
    cudnn_support = cudnn.supports(call)
    by_cudnn = call.target.platform == CUDNN_PLATFORM and implementation in (None, "cudnn") and bool(cudnn_support)
    kernel: AttentionKernel = ReferenceAttention() if implementation == "xla" or by_cudnn else kernel_for(call)
    support = kernel.supports(call)
    if call.target.platform == "gpu" and implementation is None and support:
        support = UNTIMED_ON_GPUS
    name = choose("attention", implementation, call.target, support, cudnn_support)
    return name, cudnn if name == "cudnn" else kernel


def kernel_for(call: AttentionCall) -> AttentionKernel:
    """The kernel of the call's platform; the reference where there is none. Its module is imported here: Pallas takes
    a second to load."""
    if call.target.platform == "tpu":
        from starflow_jax.kernels.attention.tpu import TPUAttention
        from starflow_jax.kernels.attention.tpu_decoding import TPUDecoding

        decoding = TPUDecoding()
        return decoding if decoding.supports(call) else TPUAttention()
    if call.target.platform == "gpu":
        from starflow_jax.kernels.attention.gpu import GPUAttention

        return GPUAttention()
    return ReferenceAttention()
