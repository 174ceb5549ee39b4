"""The grid of shapes, masks and dtypes on which every kernel is compared with the reference.

Sizes are those of the released models where a device runs them, and tiny where an interpreter does. The entries are
plain values, so that reading the grid loads no accelerator.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Platform = Literal["tpu", "gpu"]
BF16, F32 = "bfloat16", "float32"


@dataclasses.dataclass(frozen=True)
class AttentionCheck:
    """A call of attention.

    Attributes:
      name: what is compared, unique in a grid.
      rule: the class of `kernels.attention.masks` and its arguments.
      queries, slots, heads, kv_heads, dim, dtype, batch: sizes.
      offset: slot of the first query; length: slots from it on are visible to no query, None for all.
      gradients: whether the gradients are compared, or the output.
      cached: keys and values are those of layer 1 of a cache of 2, and offset and length are traced.
      part: the slots are a part of a cache, and the logarithms of the sums of weights are compared, too; the offset is
        counted from the first slot of the part and may be negative. The TPU's kernel of longer chunks computes it.
      packed: queries, keys and values are a layer's projection, which the TPU's kernels rotate by positions.
    """

    name: str
    rule: tuple[str, tuple[int | None, ...]]
    queries: int
    slots: int
    heads: int = 4
    kv_heads: int = 4
    dim: int = 64
    dtype: str = BF16
    batch: int = 1
    offset: int = 0
    length: int | None = None
    gradients: bool = False
    cached: bool = False
    part: bool = False
    packed: bool = False

    @property
    def kernel(self) -> Literal["attention", "decoding"]:
        """The part of the table that it belongs to."""
        return "decoding" if self.cached and not self.part else "attention"


@dataclasses.dataclass(frozen=True)
class UpdateCheck:
    """A Jacobi update.

    Attributes:
      name: what is compared, unique in a grid.
      head: arguments of `flows.affine_head.AffineHead`: scale, soft clip, guidance, annealed tokens.
      samples, tokens, channels: of the estimate; dtype: of the network's output.
    """

    name: str
    head: tuple[str, float, str | None, int]
    samples: int
    tokens: int
    channels: int
    dtype: str = F32

    @property
    def kernel(self) -> Literal["jacobi_update"]:
        """The part of the table that it belongs to."""
        return "jacobi_update"


Check = AttentionCheck | UpdateCheck

_CAUSAL = ("Causal", ())
_STARFLOW = ("softplus", 4.0, "ratio", 0)
_TARFLOW = ("exp", 0.0, "ab", 1024)

_SEQUENCES = (
    AttentionCheck("causal, 1,152 slots", _CAUSAL, 1152, 1152, heads=48, kv_heads=48, batch=2),
    AttentionCheck("causal, 1,153 slots, keys of 4 heads shared", _CAUSAL, 1153, 1153, heads=16, kv_heads=4),
    AttentionCheck("prefix of 128, heads of 128", ("Causal", (128,)), 1152, 1152, heads=8, kv_heads=8, dim=128),
    AttentionCheck("window of frames", ("CausalFrames", (128, 390, 1)), 2078, 2078),
    AttentionCheck("frames with look-ahead", ("FrameWindow", (128, 390, 2, 1)), 2078, 2078),
    AttentionCheck("frames, one alone", ("CausalFrames", (128, 390, 0)), 2078, 2078),
    AttentionCheck("no key is visible", ("Full", ()), 130, 1152, length=0),
    AttentionCheck("5 slots", _CAUSAL, 5, 5),
    AttentionCheck("causal, 33,646 slots", _CAUSAL, 33646, 33646, heads=2, kv_heads=2),
)
_TPU_SEQUENCES = (
    AttentionCheck("causal, float32", _CAUSAL, 1152, 1152, dtype=F32),
    AttentionCheck("heads of 16", _CAUSAL, 300, 300, dim=16),
    AttentionCheck("heads of 256", _CAUSAL, 300, 300, dim=256),
)
_PACKED = (
    AttentionCheck("a projection of 1,152 slots", _CAUSAL, 1152, 1152, 48, 48, batch=2, packed=True),
    AttentionCheck("a projection of 1,153 slots, heads of 128", _CAUSAL, 1153, 1153, 6, 6, dim=128, packed=True),
    AttentionCheck("a projection, frames", ("FrameWindow", (128, 390, 2, 1)), 2078, 2078, packed=True),
    AttentionCheck("a projection, float32", _CAUSAL, 300, 300, dtype=F32, packed=True),
)
_CACHES = tuple(
    AttentionCheck(
        f"{count} of {slots:,} slots", _CAUSAL, count, slots, 48, 48, batch=2, offset=offset, length=offset + count,
        cached=True,
    )
    for count, slots, offset in ((1, 8192, 5000), (64, 8192, 4096), (512, 8192, 7680), (1, 33648, 20001))
)  # fmt: skip
_PARTS = tuple(
    AttentionCheck(
        f"512 queries from slot {offset:,}, a part of 2,048 slots", _CAUSAL, 512, 2048, 16, 16, offset=offset,
        length=min(max(offset + 512, 0), 2048), cached=True, part=True,
    )
    for offset in (-300, 1000, 5000, -900)
)  # fmt: skip
_SHARED = AttentionCheck(
    "3 of 2,080 slots, window of frames, keys of 4 heads shared", ("CausalFrames", (128, 390, 1)), 3, 2080, 8, 2,
    offset=1500, length=1503, cached=True,
)  # fmt: skip
_UPDATES = (
    UpdateCheck("64 tokens of 4 channels", _STARFLOW, 1, 64, 4),
    UpdateCheck("512 tokens of 48 channels, bfloat16", _STARFLOW, 2, 512, 48, BF16),
    UpdateCheck("1,023 tokens of 12 channels, annealed", _TARFLOW, 3, 1023, 12),
    UpdateCheck("33,390 tokens of 48 channels", _STARFLOW, 1, 33390, 48),
    UpdateCheck("21 frames of 1,590 tokens, no guidance", ("softplus", 4.0, None, 0), 21, 1590, 48),
    UpdateCheck("means alone", ("unit", 4.0, "b", 0), 2, 1024, 4),
)

# What the interpreters of JAX run on a CPU in a few seconds each; 144 slots are whole lines of a GPU's cache.
_TINY = (
    AttentionCheck("prefix of 9, 144 slots", ("Causal", (9,)), 144, 144, heads=2, kv_heads=1),
    AttentionCheck("a projection of 144 slots", _CAUSAL, 144, 144, 2, 2, packed=True),
    AttentionCheck("2 of 144 slots", _CAUSAL, 2, 144, 2, 2, offset=77, length=79, cached=True),
    AttentionCheck(
        "130 queries from slot -40, a part of 144 slots", _CAUSAL, 130, 144, 2, 2, offset=-40, length=90, cached=True,
        part=True,
    ),
    UpdateCheck("40 tokens of 4 channels", _STARFLOW, 2, 40, 4),
)  # fmt: skip


def checks(platform: Platform, *, interpreted: bool = False) -> tuple[Check, ...]:
    """The checks of a platform's kernels, the output of a call before its gradients.

    Args:
      platform: whose kernels.
      interpreted: the tiny ones, for kernels that run on a CPU.
    """
    first, extra = (_PACKED, (*_PARTS, *_TPU_SEQUENCES)) if platform == "tpu" else ((), ())
    # Some of every kernel first: the limit of time may end the stage.
    grid: tuple[Check, ...] = (*first, *_SEQUENCES[:4], *_CACHES, _SHARED, *_UPDATES, *_SEQUENCES[4:], *extra)
    chosen: tuple[Check, ...] = _TINY if interpreted else grid
    result: list[Check] = []
    for check in chosen:
        is_part = isinstance(check, AttentionCheck) and check.part
        is_packed = isinstance(check, AttentionCheck) and check.packed
        if (is_part or is_packed) and platform != "tpu":
            continue
        result.append(check)
        if check.kernel == "attention" and not is_part:
            result.append(dataclasses.replace(check, name=f"{check.name}, gradients", gradients=True))
    return tuple(result)


def named(platform: Platform, name: str, *, interpreted: bool = False) -> Check:
    """The check of that name.

    Raises:
      ValueError: there is none.
    """
    for check in checks(platform, interpreted=interpreted):
        if check.name == name:
            return check
    names = "; ".join(check.name for check in checks(platform, interpreted=interpreted))
    raise ValueError(f"check must be one of: {names}; got {name!r}")
