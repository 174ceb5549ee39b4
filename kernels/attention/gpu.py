"""Attention on Hopper GPUs, as an `AttentionKernel`: for whole sequences.

It computes chunks with a cache, too, but is not made for them: one query takes a tile of 128 rows, and one block reads
all keys of a head. By default XLA computes them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from starflow_jax.kernels.attention import gpu_backward, gpu_forward
from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.gpu_blocks import BLOCKS, LINE, Blocks, padded_slots
from starflow_jax.kernels.attention.masks import Full
from starflow_jax.kernels.kernel_choice import Support

# CUDA 12.8.0 to 12.9.0, whose ptxas miscompiles causal masks in kernels of this kind: JAX refuses them, too, in its own
# attention for Hopper (jax.experimental.pallas.ops.gpu.attention_mgpu).
_MISCOMPILED = range(12080, 12091)


@dataclasses.dataclass(frozen=True)
class GPUAttention:
    """The forward kernel, and the backward kernels of dq and of dk and dv."""

    def supports(self, call: AttentionCall) -> Support:
        """See `AttentionKernel`."""
        if call.tiles is not None and not isinstance(call.tiles, Blocks):
            raise ValueError(
                f"tiles of the GPU's kernels must be kernels.attention.gpu_blocks.Blocks, got {call.tiles!r}"
            )
        first, *others = call.dtypes
        if first not in (jnp.bfloat16, jnp.float32) or any(dtype != first for dtype in others):
            dtypes = ", ".join(map(str, call.dtypes))
            return Support(f"needs inputs of one dtype, bfloat16 or float32, and these are {dtypes}")
        if call.target.capability != "9.0":
            capability = call.target.capability or "unknown"
            return Support(f"needs a GPU of compute capability 9.0 (Hopper), and this is {capability}")
        if first != jnp.bfloat16:
            return Support(f"needs bfloat16, and this is {first}")
        if call.head_dim not in BLOCKS:
            sizes = " or ".join(map(str, BLOCKS))
            return Support(f"needs heads of {sizes} channels, and these have {call.head_dim}")
        toolchain = call.target.libraries.toolchain
        if toolchain in _MISCOMPILED and not isinstance(call.rule, Full):
            return Support(
                "needs a CUDA toolchain (nvidia-cuda-nvcc) before 12.8.0 or from 12.9.1 on, since the ptxas of those "
                f"between miscompiles causal masks, and this is {toolchain // 1000}.{toolchain // 10 % 100}"
                f".{toolchain % 10}"
            )
        slots = call.num_slots
        if call.stacked and padded_slots(slots, call.tiles or BLOCKS[call.head_dim]) != slots:
            # Keys of one layer are padded; a cache would be copied at every call.
            return Support(f"needs caches of a multiple of {LINE} slots, at least 128, and there are {slots}")
        return Support()

    def prepare(self, call: AttentionCall) -> AttentionCall:
        """See `AttentionKernel`."""
        tiles = BLOCKS[call.head_dim] if call.tiles is None else call.tiles
        slots = call.num_slots if call.stacked else padded_slots(call.num_slots, tiles)
        return dataclasses.replace(call, tiles=tiles, num_slots=slots)

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "*layers B k S d"],
        value: Float[Array, "*layers B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n"]]:
        """See `AttentionKernel`."""
        return gpu_forward.forward(call, query, key, value, bounds)

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """See `AttentionKernel`."""
        return gpu_backward.backward(call, residuals, do, bounds)
