"""The Jacobi update on NVIDIA GPUs: one Pallas kernel (Mosaic GPU), one warpgroup for a tile of tokens of a sample.

Values go from global memory to registers and back. No value is used twice, so shared memory is not needed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import TiledLayout, Tiling
from jax.experimental.pallas import mosaic_gpu as plgpu

from starflow_jax.kernels.jacobi_update.arithmetic import new_estimate
from starflow_jax.kernels.jacobi_update.reference import Operands, UpdateCall, Updated
from starflow_jax.kernels.kernel_choice import Support

_WARPS, _LANES = 4, 32
# The most values of x in a tile: 16 per thread leave registers for intermediate results.
_TILE_VALUES = 2048


class _Arrangement(NamedTuple):
    """The arrangement of a warpgroup over [tokens, channels]: values per load, loads per token, tokens."""

    vector: int
    loads: int
    tokens: int

    @property
    def layout(self) -> Any:
        """The layout of a tile in registers."""
        rows, columns = _LANES // self.loads, self.loads * self.vector
        tiling = Tiling(((_WARPS * rows, columns), (rows, columns), (1, self.vector)))
        layout = TiledLayout(tiling, (-6,), (-4, -3), -1, _check_canonical=False).canonicalize()
        return plgpu.Layout.TILED(layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim)


def _arrangements(channels: int) -> list[_Arrangement]:
    """All arrangements, widest loads first."""
    arrangements = []
    for vector in (4, 2, 1):
        if channels % vector == 0:
            loads = math.gcd(channels // vector, _LANES)
            arrangements.append(_Arrangement(vector, loads, _WARPS * _LANES // loads))
    return arrangements


def tile(tokens: int, channels: int) -> tuple[int, Any]:
    """Tokens of a block, and the layout of its values: the widest loads for which every warp has tokens."""
    arrangement = next(option for option in _arrangements(channels) if option.tokens <= tokens)
    rows, multiple = arrangement.tokens, 1
    while 2 * multiple * rows <= tokens and 2 * multiple * rows * channels <= _TILE_VALUES:
        multiple *= 2
    return multiple * rows, arrangement.layout


class _Refs(NamedTuple):
    """References in global memory; `x` is read and replaced."""

    span: Any
    first: Any
    weight: Any
    out: Any
    z: Any
    x: Any
    sums: Any


class GPUUpdate:
    """The kernel, as a `reference.UpdateImplementation`."""

    def supports(self, call: UpdateCall) -> Support:
        """See `reference.UpdateImplementation`."""
        target = call.target
        if target.capability not in ("9.0", "10.0"):
            device = target.capability or target.kind or "no compute capability"
            return Support(f"needs a GPU of compute capability 9.0 or 10.0, got {device}")
        if call.out_dtype not in (jnp.float32, jnp.bfloat16):
            return Support(f"needs float32 or bfloat16 output of the network, got {call.out_dtype}")
        least = min(arrangement.tokens for arrangement in _arrangements(call.num_channels))
        if call.num_tokens < least:
            return Support(f"needs at least {least} tokens of {call.num_channels} channels, got {call.num_tokens}")
        return Support()

    def update(self, call: UpdateCall, operands: Operands) -> Updated:
        """See `reference.UpdateImplementation`."""
        samples, tokens, channels = operands.x.shape
        kernel = _Kernel(call, *tile(tokens, channels))
        run = pl.kernel(
            lambda *refs: kernel.run(_Refs(*refs)),
            jax.ShapeDtypeStruct((samples, kernel.num_blocks, 2), jnp.float32),
            mesh=plgpu.Mesh(grid=(samples, kernel.num_blocks), grid_names=("sample", "block")),
            compiler_params=plgpu.CompilerParams(),
            interpret=call.interpret,
            name="jacobi_update",
        )
        # The estimate is a mutable reference, so that it is replaced in place.
        estimate = jax.new_ref(operands.x, memory_space=plgpu.GMEM)
        sums = run(
            operands.span, operands.first.reshape(1), operands.weight.reshape(1), operands.out, operands.z, estimate
        )
        return jax.freeze(estimate), jnp.sum(sums, axis=1)


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The body of the kernel; `length` tokens of a block in the register layout `layout`."""

    call: UpdateCall
    length: int
    layout: Any

    @property
    def num_blocks(self) -> int:
        return self.call.num_tokens // self.length

    def run(self, refs: _Refs) -> None:
        """One block of one sample; the last block also does the remaining tokens."""
        sample, block = jax.lax.axis_index("sample"), jax.lax.axis_index("block")
        change, size = self._update(refs, sample, block * self.length, 0)
        refs.sums[sample, block, 0] = change
        refs.sums[sample, block, 1] = size
        if self.call.num_tokens % self.length:
            # The last tile overlaps the one before. This block has already updated the overlap, whose values are
            # read and written back unchanged, and which the sums leave out.
            @pl.when(block == self.num_blocks - 1)
            def _() -> None:
                tokens = self.call.num_tokens
                rest = self._update(refs, sample, tokens - self.length, self.num_blocks * self.length)
                refs.sums[sample, block, 0] = change + rest[0]
                refs.sums[sample, block, 1] = size + rest[1]

    def _load(self, ref: Any, row: Any, start: Any, channel: int) -> jax.Array:
        index = (row, pl.ds(start, self.length), pl.ds(channel, self.call.num_channels))
        # The interpreter has no register layouts.
        values = ref[index] if self.call.interpret else plgpu.load(ref, index, layout=self.layout, optimized=False)
        return values.astype(jnp.float32)

    def _tokens(self) -> jax.Array:
        shape = (self.length, self.call.num_channels)
        if self.call.interpret:
            return jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        return plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=self.layout)

    def _update(self, refs: _Refs, sample: Any, start: Any, counted: int) -> list[jax.Array]:
        """Updates tokens start .. start + length - 1; returns the sums over those from `counted` on."""
        head = self.call.head
        split = 0 if head.scale == "unit" else self.call.num_channels
        raw = []
        for index in range(head.num_passes):
            row = sample + index * self.call.num_samples
            raw.append(
                (self._load(refs.out, row, start, 0) if split else None, self._load(refs.out, row, start, split))
            )
        token = start + self._tokens()
        weight = refs.weight[0]
        if head.annealed_tokens:
            weight = weight * (refs.first[0] + token).astype(jnp.float32) / max(head.annealed_tokens - 1, 1)
        old = self._load(refs.x, sample, start, 0)
        new = new_estimate(raw, self._load(refs.z, sample, start, 0), weight, head)
        moves = (token >= refs.span[sample, 0]) & (token < refs.span[sample, 1])
        in_sums = moves & (token >= counted)
        sums = [jnp.sum(jnp.sum(jnp.square(jnp.where(in_sums, v, 0.0)), axis=1), axis=0) for v in (new - old, new)]
        refs.x[sample, pl.ds(start, self.length), :] = jnp.where(moves, new, old)
        return sums
