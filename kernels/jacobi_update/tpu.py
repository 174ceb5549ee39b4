"""The Jacobi update on TPUs: one Pallas kernel (Mosaic) over tiles of samples and tokens.

Tokens lie along the lanes: a token has 4 to 192 channels, which as the last axis would fill a fraction of the 128.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from starflow_jax.kernels.jacobi_update.arithmetic import new_estimate
from starflow_jax.kernels.jacobi_update.reference import Reading

_LANES = 128
# Bytes of a grid step's blocks, twice of which (the next step's are fetched meanwhile) fit every chip's vector memory.
_BLOCK_BYTES = 2 * 2**20
_MOST_SAMPLES = 8


def refusal(out: jax.Array, x: jax.Array) -> str | None:
    """Why the kernel does not cover a case; None where it does."""
    if out.dtype not in (jnp.float32, jnp.bfloat16):
        return f"needs float32 or bfloat16 output of the network, got {out.dtype}"
    return None


def tile(samples: int, tokens: int, channels: int, reading: Reading) -> tuple[int, int]:
    """Samples and tokens of a grid step."""
    rounded = math.ceil(channels / 8) * 8  # sublanes of a register
    bytes_of_token = 4 * rounded * (3 + reading.halves * (1 if reading.scale == "unit" else 2))
    most = max(_BLOCK_BYTES // bytes_of_token // _LANES, 1) * _LANES
    if tokens > most:
        return 1, most
    padded = math.ceil(tokens / _LANES) * _LANES
    fits = min(_MOST_SAMPLES, most // padded)
    return max(s for s in range(1, fits + 1) if samples % s == 0), tokens


def update(
    out: jax.Array,
    z: jax.Array,
    x: jax.Array,
    span: jax.Array,
    weight: jax.Array,
    first: jax.Array,
    reading: Reading,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `jacobi_update.update`."""
    samples, tokens, channels = x.shape
    rows, length = tile(samples, tokens, channels, reading)
    steps = pl.cdiv(tokens, length)
    split = 0 if reading.scale == "unit" else channels

    def kernel(span_ref, first_ref, weight_ref, out_ref, z_ref, x_ref, new_ref, sums_ref):
        begins = pl.program_id(1) * length
        token = begins + jax.lax.broadcasted_iota(jnp.int32, (1, length), 1)
        w = weight_ref[0]
        if reading.annealed:
            w = w * (first_ref[0] + token).astype(jnp.float32) / max(reading.annealed - 1, 1)
        for row in range(rows):
            sample = pl.program_id(0) * rows + row
            # What lies behind the last token is garbage.
            moves = (token >= span_ref[sample, 0]) & (token < jnp.minimum(span_ref[sample, 1], tokens))
            both = [out_ref[half, row].astype(jnp.float32) for half in range(reading.halves)]
            raw = [(half[:split] if split else None, half[split:]) for half in both]
            new, old = new_estimate(raw, z_ref[row], w, reading), x_ref[row]
            new_ref[row] = jnp.where(moves, new, old)
            for place, value in enumerate((new - old, new)):
                value = jnp.where(moves, value, 0.0)
                sums_ref[row, 0, place : place + 1] = jnp.broadcast_to(jnp.sum(value * value), (1, _LANES))

    def block(sample, step):
        return sample, 0, step

    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    of_x = pl.BlockSpec((rows, channels, length), block)
    raw = jnp.swapaxes(out, 1, 2).reshape(reading.halves, samples, -1, tokens)
    of_raw = pl.BlockSpec((reading.halves, rows, raw.shape[2], length), lambda *at: (0, *block(*at)))
    planes = jax.ShapeDtypeStruct((samples, channels, tokens), jnp.float32)
    new, sums = pl.pallas_call(
        kernel,
        grid=(samples // rows, steps),
        in_specs=[scalars, scalars, scalars, of_raw, of_x, of_x],
        out_specs=[of_x, pl.BlockSpec((rows, 1, 2, _LANES), lambda *at: (at[0], at[1], 0, 0))],
        out_shape=[planes, jax.ShapeDtypeStruct((samples, steps, 2, _LANES), jnp.float32)],
        input_output_aliases={5: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="jacobi_update",
    )(span, first.reshape(1), weight.reshape(1), raw, jnp.swapaxes(z, 1, 2), jnp.swapaxes(x, 1, 2))
    return jnp.swapaxes(new, 1, 2), jnp.sum(sums[..., 0], axis=1)
