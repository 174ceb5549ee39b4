"""Block sizes of the TPU's attention kernels, by a small model of the time that the kernels take.

A grid step costs cycles for each 128 x 128 tile of logits, and a constant: the start of its pipeline, and the time
between steps. The constants were read off the schedules that the TPU's compiler makes of these kernels
(docs/performance.md describes how), not measured on a device; `experiments/benchmarks/tune_attention.py` measures.
"""

from __future__ import annotations

import dataclasses
import functools

from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.schedule import Problem, schedule

_LANES = 128
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Costs:
    """Cycles and memory of the kernels on one core.

    Attributes:
      forward, backward: for a tile of 128 x 128 logits, of heads of 64 and of 128 channels.
      step: for a step of the grid of any size: filling the units, and about 0.3 us between steps.
      rotation: forward and backward, for 128 slots of a head of 64 channels, where the kernels rotate queries and keys
        and sum the gradients of the bias and of output x gradient.
      memory: bytes of vector memory that a kernel may use.
    """

    forward: tuple[float, float]
    backward: tuple[float, float]
    step: float
    rotation: tuple[float, float]
    memory: int

    def tile(self, dim: int, *, backward: bool) -> float:
        """Cycles for a tile of logits, of heads of `dim` channels."""
        narrow, wide = self.backward if backward else self.forward
        return max(narrow + (wide - narrow) * (dim - 64) / 64, narrow / 2)


# By the names of `costs.chips`. The schedules of v4 and tpu7x were not read: they use the figures of v5p and v6e.
COSTS = {
    "v4": Costs((54, 68), (100, 150), 620, (40, 165), 14 * _MIB),
    "v5e": Costs((54, 68), (100, 150), 800, (40, 165), 100 * _MIB),
    "v5p": Costs((54, 68), (100, 150), 850, (40, 165), 48 * _MIB),
    "v6e": Costs((42, 50), (64, 75), 850, (35, 135), 100 * _MIB),
    "tpu7x": Costs((42, 50), (64, 75), 850, (35, 135), 48 * _MIB),
}
DEFAULT_CHIP = "v5p"

# Prefixes of `jax.Device.device_kind`; the first match counts.
_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v6": "v6e", "TPU7": "tpu7x"}

# The longest blocks, the most tiles of all heads of a step, and the most heads: more tiles use the units better, and
# take longer to compile.
_MAX_BLOCK, _MAX_BLOCK_BACKWARD, _MAX_TILES, _MAX_HEADS = 1024, 768, 72, 8


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Block sizes of the kernels.

    Attributes:
      block_q, block_k, heads: queries, keys and heads of one step forward; and the same backward, all 0 where the
        vector memory cannot hold the gradients of a head, which the reference then computes.
      memory: bytes of vector memory that the compiler may use.

    Raises:
      ValueError: block sizes that are not multiples of 128, or zero heads.
    """

    block_q: int
    block_k: int
    heads: int
    block_q_backward: int
    block_k_backward: int
    heads_backward: int
    memory: int = COSTS[DEFAULT_CHIP].memory

    def __post_init__(self) -> None:
        forward = (self.block_q, self.block_k, self.heads)
        for q, k, heads in (forward, (self.block_q_backward, self.block_k_backward, self.heads_backward)):
            if (q, k, heads) != (0, 0, 0) and (q < 1 or k < 1 or heads < 1 or q % _LANES or k % _LANES):
                raise ValueError(f"tiles must have blocks of multiples of {_LANES} and heads >= 1, got {self}")
        if not self.block_q:
            raise ValueError(f"tiles must have blocks of multiples of {_LANES} and heads >= 1, got {self}")


def chip_name(kind: str) -> str:
    """The name in `COSTS` of a device of this `jax.Device.device_kind`."""
    return next((chip for start, chip in _KINDS.items() if kind.startswith(start)), DEFAULT_CHIP)


@functools.lru_cache(maxsize=256)
def tiles_for(
    rule: Visibility,
    queries: int,
    slots: int,
    heads: int,
    dim: int,
    itemsize: int = 2,
    chip: str = DEFAULT_CHIP,
    *,
    packed: bool = False,
) -> Tiles:
    """The block sizes that the model expects to be fastest.

    Args:
      rule, queries, slots: the visibility rule and sizes of a pass from slot 0.
      heads: number of query heads. dim: channels of a head. itemsize: bytes of a channel.
      chip: a name in `COSTS`.
      packed: for `packed.packed_attention`, which rotates queries and keys.
    """
    costs = COSTS[chip]
    choices: list[int] = []
    for backward, longest in ((False, _MAX_BLOCK), (True, _MAX_BLOCK_BACKWARD)):
        cycles = costs.tile(dim, backward=backward)
        options: list[tuple[float, int, int]] = []
        for lanes in range(1, min(-(-max(queries, slots) // _LANES), longest // _LANES) + 1):
            size = lanes * _LANES
            pairs = visited(rule, queries, slots, size)
            for together in {1, *(2**n for n in range(4) if 2**n * lanes**2 <= _MAX_TILES)}:
                if _bytes(size, slots, dim, itemsize, together, backward, packed) > 0.8 * costs.memory:
                    continue
                share = min(together, _MAX_HEADS, heads)
                steps = pairs * (lanes**2 * cycles + costs.step / share)
                options.append((steps, size, share))
        choices.extend(min(options)[1:] if options else (0, 0))
    size, together, size_backward, together_backward = choices
    return Tiles(size, size, together, size_backward, size_backward, together_backward, costs.memory)


def packed_fits(
    rule: Visibility, slots: int, heads: int, dim: int, itemsize: int = 2, chip: str = DEFAULT_CHIP
) -> bool:
    """Whether `packed.packed_attention` of whole sequences fits in the vector memory with the blocks of `tiles_for`."""
    sizes = (rule, slots, slots, heads, dim, itemsize, chip)
    tiles = tiles_for(*sizes)
    return tiles.block_q_backward > 0 and tiles_for(*sizes, packed=True) == tiles


def visited(rule: Visibility, queries: int, slots: int, size: int) -> int:
    """The number of pairs of blocks of `size` queries and keys that a kernel visits in a pass from slot 0."""
    return int(schedule(Problem(rule, queries, slots, queries), 0, slots, size, size).count)


def _bytes(size: int, slots: int, dim: int, itemsize: int, heads: int, backward: bool, packed: bool) -> float:
    """Approximate vector memory of a kernel: its blocks twice, its sums, and logits and weights of two heads."""
    logits = 2 * (10 if backward else 7) * size * size
    blocks = 2 * (6 if backward else 4) * heads * size * dim * itemsize + heads * size * dim * 4
    whole = dim * (slots + size)
    if packed:
        # Rotated queries and keys, and tables; backward those of all slots, float32 sums, the packed gradient twice.
        blocks += heads * (size * dim + whole) * itemsize + 2 * 2 * 2 * 4 * size * dim
        return logits + blocks + (whole * (2 * 4 + heads * (2 * 4 + 2 * 3 * itemsize)) if backward else 0)
    return logits + blocks + (2 * 2 * 4 * heads * whole if backward else 0)
