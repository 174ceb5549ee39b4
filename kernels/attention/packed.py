"""Attention of a packed projection, with rotary positions inside the kernels of TPUs.

A layer's projection writes queries, keys and values side by side. Attention that takes these apart and rotates them
first reads and writes all of them once more in the forward pass, in its recomputation and in the backward pass, which
takes a TPU longer than rotating inside the kernels. Here the kernels read the projection in place, rotate each block
where it is used, and write one packed gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.api import select
from starflow_jax.kernels.attention.block_sizes import chip_name, packed_fits
from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Residuals
from starflow_jax.kernels.attention.derivatives import OPERANDS_NAME, RESULTS_NAME
from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.reference import ReferenceAttention
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.kernel_choice import Implementation, Target, device_target


def takes_packed(
    shape: Sequence[int],
    dtype: Any,
    *,
    visibility: Visibility,
    implementation: Implementation = None,
    target: Target,
) -> bool:
    """Whether `packed_attention` has kernels for the call, and is the faster choice.

    That is where `attention` would run the kernels of TPUs, and the vector memory holds what the packed ones need with
    the same blocks. `shape` is that of the array, [B, n, h, 3, d].
    """
    if target.platform != "tpu" or implementation not in (None, "pallas"):
        return False
    call = _describe(shape, dtype, visibility, target)
    if select(call, implementation)[0] != "pallas":
        return False
    sizes = (call.num_slots, call.num_heads, call.head_dim, call.dtypes[0].itemsize)
    return packed_fits(visibility, *sizes, chip_name(target.kind))


def packed_attention(
    packed: Float[Array, "..."],
    bias: Float[Array, "heads parts d"] | None,
    cos: Float[Array, "slots half"],
    sin: Float[Array, "slots half"],
    *,
    adjacent: bool,
    scale: float,
    visibility: Visibility,
    target: Target | None = None,
    tiles: Any = None,
    precision: jax.lax.PrecisionLike = None,
    interpret: Any = False,
) -> Float[Array, "B h n d"]:
    """Attention of a whole sequence to itself, with as many heads of keys as of queries.

    As `attention` of queries that are rotated and scaled, rotated keys, and values; gradients are the kernel's, and
    higher ones are the reference's.

    Args:
      packed: [B, n, h, 3, d], query, key and value of each head, not rotated, in bfloat16 or float32.
      bias: [h, 3, d], added to `packed` in its dtype; an argument of its own, since the kernel sums its gradient.
      cos, sin: [n, d / 2] float32, of each slot and pair of channels.
      adjacent: whether pairs are neighbouring channels, else the two halves.
      scale: of the softmax.
      visibility, target, tiles, precision, interpret: as in `attention`.

    Returns:
      [B, h, n, d] in the dtype of `packed`.

    Raises:
      ValueError: arrays that do not fit each other, or a call that `takes_packed` excludes for its size.
    """
    count, dim = packed.shape[1], packed.shape[-1]
    if packed.ndim != 5 or packed.shape[3] != 3 or dim % 2 or cos.shape != (count, dim // 2):
        raise ValueError(
            f"packed must be [B, n, h, 3, d] and cos and sin [n, d / 2], got {packed.shape} and {cos.shape}"
        )
    target = device_target() if target is None else target
    options = {"tiles": tiles, "precision": precision, "interpret": interpret}
    call = _prepared(_describe(packed.shape, packed.dtype, visibility, target, **options))
    if not call.tiles.block_q_backward:
        raise ValueError(
            f"the gradients of {count} slots of heads of {dim} channels do not fit in the vector memory "
            f"({call.tiles.memory / 2**20:g} MiB); use `attention`"
        )
    rotary = Rotary(adjacent, scale)
    bias = jnp.zeros(packed.shape[2:], jnp.float32) if bias is None else bias
    # Channels by slots, as the compiler stores the projection then.
    arrays = packed.transpose(3, 0, 2, 4, 1), bias.swapaxes(0, 1)
    out = _attend(call, rotary, *arrays, rotary.tables(cos, sin))
    return out.swapaxes(2, 3)


def _describe(shape: Sequence[int], dtype: Any, rule: Visibility, target: Target, **options: Any) -> AttentionCall:
    _, count, heads, _, dim = shape
    return AttentionCall(
        rule,
        target,
        num_heads=heads,
        num_kv_heads=heads,
        num_queries=count,
        num_slots=count,
        head_dim=dim,
        dtypes=(jnp.dtype(dtype),) * 3,
        offset=0,
        length=count,
        **options,
    )


def _prepared(call: AttentionCall) -> AttentionCall:
    from starflow_jax.kernels.attention.tpu import TPUAttention  # Pallas takes a second to load

    return TPUAttention().prepare(call, packed=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    call: AttentionCall,
    rotary: Rotary,
    packed: Float[Array, "3 B h d n"],
    bias: Float[Array, "3 h d"],
    tables: Float[Array, "2 d n"],
) -> Float[Array, "B h d n"]:
    return _attend_to_sum(call, rotary, _biased(packed, bias), tables)[0]


def _biased(packed: Float[Array, "3 B h d n"], bias: Float[Array, "3 h d"]) -> Float[Array, "3 B h d n"]:
    return checkpoint_name(packed + bias.astype(packed.dtype)[:, None, :, :, None], OPERANDS_NAME)


def _attend_forward(
    call: AttentionCall,
    rotary: Rotary,
    packed: Float[Array, "3 B h d n"],
    bias: Float[Array, "3 h d"],
    tables: Float[Array, "2 d n"],
) -> Any:
    # A second derivative differentiates this rule, so it calls a function that has a derivative.
    biased = _biased(packed, bias)
    out, lse = (checkpoint_name(array, RESULTS_NAME) for array in _attend_to_sum(call, rotary, biased, tables))
    return out, (biased, *_saved(tables), out, lse, *_saved(bias))


def _saved(*arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """Arguments as residuals that are values of their own.

    Arguments that are residuals as they are, JAX (0.10.2) looks up by their index, and where a loop is differentiated
    twice it takes the wrong ones.
    """
    return tuple(checkpoint_name(array, "attention_arguments") for array in arrays)


def _attend_backward(call: AttentionCall, rotary: Rotary, saved: Any, do: Float[Array, "B h d n"]) -> Any:
    *arrays, bias = saved
    gradient, total = _gradients(call, rotary, *arrays, do)
    return gradient, total.astype(bias.dtype), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_to_sum(
    call: AttentionCall, rotary: Rotary, biased: Float[Array, "3 B h d n"], tables: Float[Array, "2 d n"]
) -> tuple[Float[Array, "B h d n"], Float[Array, "B h 1 n"]]:
    """`_attend` as a function of packed + bias; and the binary logarithm of the sum of weights, not differentiated."""
    from starflow_jax.kernels.attention.tpu_forward import packed_forward

    return packed_forward(call, rotary, biased, tables)


def _attend_to_sum_forward(
    call: AttentionCall, rotary: Rotary, biased: Float[Array, "3 B h d n"], tables: Float[Array, "2 d n"]
) -> Any:
    out, lse = _attend_to_sum(call, rotary, biased, tables)
    return (out, lse), (*_saved(biased, tables), out, lse)


def _attend_to_sum_backward(call: AttentionCall, rotary: Rotary, saved: Any, cotangents: Any) -> Any:
    return _gradients(call, rotary, *saved, cotangents[0])[0], None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    call: AttentionCall,
    rotary: Rotary,
    biased: Float[Array, "3 B h d n"],
    tables: Float[Array, "2 d n"],
    out: Float[Array, "B h d n"],
    lse: Float[Array, "B h 1 n"],
    do: Float[Array, "B h d n"],
) -> tuple[Float[Array, "3 B h d n"], Float[Array, "3 h d"]]:
    """The gradients by `packed` and `bias`, as a function of their sum and of `do`; the others are functions of it."""
    from starflow_jax.kernels.attention.tpu_backward import packed_backward

    return packed_backward(call, rotary, biased, tables, out, lse, do)


def _gradients_forward(call: AttentionCall, rotary: Rotary, *arrays: jax.Array) -> Any:
    return _gradients(call, rotary, *arrays), _saved(*arrays)


def _gradients_backward(call: AttentionCall, rotary: Rotary, saved: Any, cotangents: Any) -> Any:
    biased, tables, out, lse, do = saved

    def reference(
        biased: Float[Array, "3 B h d n"], do: Float[Array, "B h d n"]
    ) -> tuple[Float[Array, "3 B h d n"], Float[Array, "3 h d"]]:
        operands, transposed = jax.vjp(lambda biased: rotary.unpack(biased, tables), biased)
        residuals = Residuals(*operands, out.swapaxes(2, 3), lse)
        gradients = ReferenceAttention().backward(call, residuals, do.swapaxes(2, 3), Bounds(0, call.num_slots))
        gradient: jax.Array = transposed(gradients)[0]
        return gradient, jnp.sum(gradient.astype(jnp.float32), axis=(1, 4))

    by_biased, by_do = jax.vjp(reference, biased, do)[1](cotangents)
    return by_biased, None, *map(jnp.zeros_like, (out, lse)), by_do


_attend.defvjp(_attend_forward, _attend_backward)
_attend_to_sum.defvjp(_attend_to_sum_forward, _attend_to_sum_backward)
_gradients.defvjp(_gradients_forward, _gradients_backward)
