"""Attention on TPUs by the Splash kernels that come with JAX: no weights in the main memory, no masked blocks.

`reference.attention` is the specification. This is for whole sequences from slot 0, as training has them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    MultiHeadMask,
    make_splash_mha_single_device,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from starflow_jax.kernels.tiling import blocks
from starflow_jax.kernels.visibility import Visibility


@dataclasses.dataclass(frozen=True)
class _Rule(masks.Mask):
    """A visibility rule as the kernels read it: evaluated a block at a time; slots past the end are hidden."""

    rule: Visibility
    slots: int
    padded: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.padded, self.padded

    @property
    def q_sequence(self) -> np.ndarray:
        """The slots of the queries."""
        return np.arange(self.padded, dtype=np.int32)

    def mask_function(self, query, key):
        """Whether a query sees a key; integer arrays of the same or of broadcast shapes, in numpy or in a kernel."""
        seen = self.rule.mask(query, key)
        # A query past the end sees the first slot, as a row that sees nothing has no softmax.
        return (seen & (key < self.slots)) | ((query >= self.slots) & (key == 0))

    def __getitem__(self, index) -> np.ndarray:
        query, key = (np.arange(*part.indices(self.padded), dtype=np.int32) for part in index)
        with jax.ensure_compile_time_eval():
            return np.asarray(self.mask_function(query[:, None], key[None, :]))


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, visibility: Visibility, interpret: bool = False
) -> jax.Array:
    """Scaled attention whose scale is already inside `query`; softmax in float32, products accumulated in float32.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale; key, value: [B, k, n, d] with k dividing h.
      visibility: which slots see which; evaluated inside the kernel.
      interpret: run on any device, slowly.

    Returns:
      [B, h, n, d] in the dtype of `value`.
    """
    heads, count = query.shape[1:3]
    group = heads // key.shape[1]
    if group > 1:
        key, value = (jnp.repeat(array, group, axis=1) for array in (key, value))
    kernel, padded = _kernel(visibility, heads, count, interpret)
    widths = ((0, 0), (0, 0), (0, padded - count), (0, 0))
    query, key, value = (jnp.pad(array, widths) for array in (query, key, value))
    return jax.vmap(kernel)(query, key, value)[:, :, :count].astype(value.dtype)


def _kernel(visibility: Visibility, heads: int, count: int, interpret: bool) -> tuple[Any, int]:
    block, padded = blocks(count)
    mask = MultiHeadMask([_Rule(visibility, count, padded)] * heads)
    # One kernel for all gradients: five products a pair instead of seven. It writes those of the queries once for each
    # block of keys, which costs memory that one layer needs at a time.
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip
    return make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret), padded
