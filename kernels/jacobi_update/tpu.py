"""The Jacobi update on TPUs: one Pallas kernel (Mosaic) over tiles of samples and tokens.

Tokens lie along the lanes: a token has 4 to 192 channels, which as the last axis would fill a fraction of the 128.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from starflow_jax.kernels.jacobi_update.arithmetic import new_estimate
from starflow_jax.kernels.jacobi_update.reference import Operands, OutputHead, UpdateCall, Updated
from starflow_jax.kernels.kernel_choice import Support

_LANES = 128
# Bytes of a grid step's blocks. Twice as many (the next step's are fetched meanwhile) fit every chip's vector memory.
_BLOCK_BYTES = 2 * 2**20
_MAX_SAMPLES = 8


def tile(samples: int, tokens: int, channels: int, head: OutputHead) -> tuple[int, int]:
    """Samples and tokens of a grid step."""
    rounded = math.ceil(channels / 8) * 8  # sublanes of a register
    bytes_per_token = 4 * rounded * (3 + head.num_passes * (1 if head.scale == "unit" else 2))
    max_tokens = max(_BLOCK_BYTES // bytes_per_token // _LANES, 1) * _LANES
    if tokens > max_tokens:
        return 1, max_tokens
    padded = math.ceil(tokens / _LANES) * _LANES
    max_samples = min(_MAX_SAMPLES, max_tokens // padded)
    return max(s for s in range(1, max_samples + 1) if samples % s == 0), tokens


class _Refs(NamedTuple):
    """References of a grid step, tokens along the last axis."""

    span: Any
    first: Any
    weight: Any
    out: Any
    z: Any
    x: Any
    new: Any
    sums: Any


class TPUUpdate:
    """The kernel, as a `reference.UpdateImplementation`."""

    def supports(self, call: UpdateCall) -> Support:
        """See `reference.UpdateImplementation`."""
        if call.out_dtype not in (jnp.float32, jnp.bfloat16):
            return Support(f"needs float32 or bfloat16 output of the network, got {call.out_dtype}")
        return Support()

    def update(self, call: UpdateCall, operands: Operands) -> Updated:
        """See `reference.UpdateImplementation`."""
        samples, tokens, channels = operands.x.shape
        head = call.head
        rows, length = tile(samples, tokens, channels, head)
        steps = pl.cdiv(tokens, length)
        raw = jnp.swapaxes(operands.out, 1, 2).reshape(head.num_passes, samples, -1, tokens)
        scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
        x_spec = pl.BlockSpec((rows, channels, length), lambda sample, step: (sample, 0, step))
        raw_spec = pl.BlockSpec(
            (head.num_passes, rows, raw.shape[2], length), lambda sample, step: (0, sample, 0, step)
        )
        new, sums = pl.pallas_call(
            lambda *refs: _update_tile(call, rows, length, _Refs(*refs)),
            grid=(samples // rows, steps),
            in_specs=[scalars, scalars, scalars, raw_spec, x_spec, x_spec],
            out_specs=[x_spec, pl.BlockSpec((rows, 1, 2, _LANES), lambda sample, step: (sample, step, 0, 0))],
            out_shape=[
                jax.ShapeDtypeStruct((samples, channels, tokens), jnp.float32),
                jax.ShapeDtypeStruct((samples, steps, 2, _LANES), jnp.float32),
            ],
            input_output_aliases={5: 0},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
            interpret=call.interpret,
            name="jacobi_update",
        )(
            operands.span,
            operands.first.reshape(1),
            operands.weight.reshape(1),
            raw,
            *(jnp.swapaxes(array, 1, 2) for array in (operands.z, operands.x)),
        )
        return jnp.swapaxes(new, 1, 2), jnp.sum(sums[..., 0], axis=1)


def _update_tile(call: UpdateCall, rows: int, length: int, refs: _Refs) -> None:
    head, tokens = call.head, call.num_tokens
    split = 0 if head.scale == "unit" else call.num_channels
    token = pl.program_id(1) * length + jax.lax.broadcasted_iota(jnp.int32, (1, length), 1)
    weight = refs.weight[0]
    if head.annealed_tokens:
        weight = weight * (refs.first[0] + token).astype(jnp.float32) / max(head.annealed_tokens - 1, 1)
    for row in range(rows):
        sample = pl.program_id(0) * rows + row
        # The values of a block behind the last token are undefined.
        moves = (token >= refs.span[sample, 0]) & (token < jnp.minimum(refs.span[sample, 1], tokens))
        passes = [refs.out[index, row].astype(jnp.float32) for index in range(head.num_passes)]
        raw = [(out[:split] if split else None, out[split:]) for out in passes]
        new, old = new_estimate(raw, refs.z[row], weight, head), refs.x[row]
        refs.new[row] = jnp.where(moves, new, old)
        for index, value in enumerate((new - old, new)):
            value = jnp.where(moves, value, 0.0)
            refs.sums[row, 0, index : index + 1] = jnp.broadcast_to(jnp.sum(value * value), (1, _LANES))
