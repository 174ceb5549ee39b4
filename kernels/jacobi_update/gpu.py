"""The Jacobi update on NVIDIA GPUs: one Pallas kernel (Mosaic GPU), a warpgroup for a tile of tokens of a sample.

Loads and stores go between registers and the main memory: nothing is used twice, so nothing is staged.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import TiledLayout, Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from starflow_jax.kernels.choice import Target
from starflow_jax.kernels.jacobi_update.arithmetic import new_estimate
from starflow_jax.kernels.jacobi_update.reference import Reading

_WARPS, _LANES = 4, 32
# Values of x that a tile holds at most: 16 a thread leave registers for what is computed from them.
_TILE_VALUES = 2048


def refusal(out: jax.Array, x: jax.Array, target: Target) -> str | None:
    """Why the kernel does not cover a case; None where it does."""
    if target.capability not in ("9.0", "10.0"):
        found = target.capability or target.kind or "no compute capability"
        return f"needs a GPU of compute capability 9.0 or 10.0, got {found}"
    if out.dtype not in (jnp.float32, jnp.bfloat16):
        return f"needs float32 or bfloat16 output of the network, got {out.dtype}"
    least = min(rows for _, _, rows in _arrangements(x.shape[2]))
    if x.shape[1] < least:
        return f"needs at least {least} tokens of {x.shape[2]} channels, got {x.shape[1]}"
    return None


def _arrangements(channels: int) -> list[tuple[int, int, int]]:
    """Ways to spread a warpgroup over [tokens, channels]: values of a load, loads side by side, tokens."""
    found = []
    for vector in (4, 2, 1):
        if channels % vector == 0:
            beside = math.gcd(channels // vector, _LANES)
            found.append((vector, beside, _WARPS * _LANES // beside))
    return found


def _layout(vector: int, beside: int) -> Any:
    below, wide = _LANES // beside, beside * vector
    tiling = Tiling(((_WARPS * below, wide), (below, wide), (1, vector)))
    layout = TiledLayout(tiling, (-6,), (-4, -3), -1, _check_canonical=False).canonicalize()
    return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


def tile(tokens: int, channels: int) -> tuple[int, Any]:
    """Tokens of a block, and how its values are spread over threads: loads as wide as leave tokens for every warp."""
    vector, beside, rows = next(found for found in _arrangements(channels) if found[2] <= tokens)
    many = 1
    while 2 * many * rows <= tokens and 2 * many * rows * channels <= _TILE_VALUES:
        many *= 2
    return many * rows, _layout(vector, beside)


def update(
    out: jax.Array,
    z: jax.Array,
    x: jax.Array,
    span: jax.Array,
    weight: jax.Array,
    first: jax.Array,
    reading: Reading,
    *,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """As `jacobi_update.update`."""
    samples, tokens, channels = x.shape
    length, layout = tile(tokens, channels)
    blocks, rest = divmod(tokens, length)
    split = 0 if reading.scale == "unit" else channels
    shape = (length, channels)

    def kernel(span_ref, first_ref, weight_ref, out_ref, z_ref, x_ref, sums_ref):
        sample, block = jax.lax.axis_index("sample"), jax.lax.axis_index("block")
        begin, end = span_ref[sample, 0], span_ref[sample, 1]

        def step(start, counted):
            """Tokens start .. start + length - 1; the sums are of those from `counted` on."""

            def load(ref, row, channel):
                place = (row, pl.ds(start, length), pl.ds(channel, channels))
                # The interpreter knows no layouts.
                values = ref[place] if interpret else plgpu.load(ref, place, layout=layout, optimized=False)
                return values.astype(jnp.float32)

            raw = []
            for half in range(reading.halves):
                row = sample + half * samples
                raw.append((load(out_ref, row, 0) if split else None, load(out_ref, row, split)))
            token = start + (
                jax.lax.broadcasted_iota(jnp.int32, shape, 0)
                if interpret
                else plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
            )
            w = weight_ref[0]
            if reading.annealed:
                w = w * (first_ref[0] + token).astype(jnp.float32) / max(reading.annealed - 1, 1)
            old = load(x_ref, sample, 0)
            new = new_estimate(raw, load(z_ref, sample, 0), w, reading)
            moves = (token >= begin) & (token < end)
            kept = moves & (token >= counted)
            sums = [jnp.sum(jnp.sum(jnp.square(jnp.where(kept, v, 0.0)), axis=1), axis=0) for v in (new - old, new)]
            x_ref[sample, pl.ds(start, length), :] = jnp.where(moves, new, old)
            return sums

        change, size = step(block * length, 0)
        sums_ref[sample, block, 0] = change
        sums_ref[sample, block, 1] = size
        if rest:
            # The last tokens, as a tile that reaches back into the one before: that one is this block's own and has
            # been read and written, so what is read of it again is written back the same.
            @pl.when(block == blocks - 1)
            def _():
                more = step(tokens - length, blocks * length)
                sums_ref[sample, block, 0] = change + more[0]
                sums_ref[sample, block, 1] = size + more[1]

    # As a reference the estimate is replaced in place.
    run = pl.kernel(
        kernel,
        jax.ShapeDtypeStruct((samples, blocks, 2), jnp.float32),
        mesh=plgpu.Mesh(grid=(samples, blocks), grid_names=("sample", "block")),
        compiler_params=plgpu.CompilerParams(),
        interpret=interpret,
        name="jacobi_update",
    )
    estimate = jax.new_ref(x, memory_space=plgpu.GMEM)
    sums = run(span, first.reshape(1), weight.reshape(1), out, z, estimate)
    return jax.freeze(estimate), jnp.sum(sums, axis=1)
