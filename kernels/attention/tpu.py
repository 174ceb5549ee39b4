"""Attention of whole sequences and longer chunks on TPUs, as an `AttentionKernel`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from starflow_jax.kernels.attention import tpu_backward, tpu_forward
from starflow_jax.kernels.attention.block_sizes import Tiles, chip_name, tiles_for
from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.reference import ReferenceAttention
from starflow_jax.kernels.kernel_choice import Support


def tpu_support(call: AttentionCall) -> Support:
    """The requirements of every TPU kernel."""
    first, *others = call.dtypes
    if first not in (jnp.bfloat16, jnp.float32) or any(dtype != first for dtype in others):
        dtypes = ", ".join(map(str, call.dtypes))
        return Support(f"needs inputs of one dtype, bfloat16 or float32, and these are {dtypes}")
    if call.head_dim % 16 or call.head_dim > 256:
        return Support(f"needs heads of a multiple of 16 channels, at most 256, and these have {call.head_dim}")
    return Support()


@dataclasses.dataclass(frozen=True)
class TPUAttention:
    """The forward and the backward kernel."""

    def supports(self, call: AttentionCall) -> Support:
        """See `AttentionKernel`."""
        if call.tiles is not None and not isinstance(call.tiles, Tiles):
            raise ValueError(f"tiles of the TPU's kernels must be attention.block_sizes.Tiles, got {call.tiles!r}")
        return tpu_support(call)

    def prepare(self, call: AttentionCall, *, packed: bool = False) -> AttentionCall:
        """See `AttentionKernel`; packed: for `packed.packed_attention`, whose gradients take more memory."""
        if call.tiles is not None:
            return call
        sizes = (call.num_queries, call.num_slots, call.num_heads, call.head_dim, jnp.dtype(call.dtypes[0]).itemsize)
        tiles = tiles_for(call.rule, *sizes, chip_name(call.target.kind), packed=packed)
        return dataclasses.replace(call, tiles=tiles)

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "*layers B k S d"],
        value: Float[Array, "*layers B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], Float[Array, "B h 1 n"]]:
        """See `AttentionKernel`."""
        return tpu_forward.forward(call, query, key, value, bounds)

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """See `AttentionKernel`; by the reference where the vector memory cannot hold dk and dv of a head."""
        if not call.tiles.block_q_backward:
            return ReferenceAttention().backward(call, residuals, do, bounds)
        return tpu_backward.backward(call, residuals, do, bounds)
