"""Published peaks of accelerators, and topologies of many of them: `v5p:4x4x4`, `v5e:8x8`, `h100:8x4`.

Figures are those of the manufacturers: for TPUs, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; for GPUs,
NVIDIA's data sheets of the SXM modules and its white paper on Ada GPUs, dense (without sparsity). Link bandwidths are
one-way. The usable memory of a TPU is what its compiler grants to a program (the rest is reserved); on a GPU, JAX is
assumed to use 92 %.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Literal

GIB = 2**30
GB = 10**9
_GPU_SHARE = 0.92


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: its name in a topology; kind: "tpu" or "gpu".
      peak: bfloat16 FLOP/s of the chip, with float32 accumulation.
      usable: bytes of memory per JAX device that programs may use.
      bandwidth: bytes/s between the chip and its memory.
      link: one-way bytes/s of one link; for a GPU, of all its links inside a node together.
      links: number of links of a chip: two per axis of a TPU's torus; 1 for a GPU.
      outside: one-way bytes/s of a chip to other nodes (GPUs) or slices (TPUs).
      devices: JAX devices per chip; each has an equal share of everything above except `usable`.
      clock: clock rate of the matrix units in Hz, which converts the compiler's cycles to seconds; 0 if the compiler
        reports no cycles.
      unit: rows and columns of a TPU's matrix unit; a product over fewer channels leaves the rest of it idle.
      share: the share of the peak that large bfloat16 products reach: on TPUs by the compiler's cycles for matrices of
        16,384 x 16,384; on GPUs an assumption.
    """

    name: str
    kind: Literal["tpu", "gpu"]
    peak: float
    usable: float
    bandwidth: float
    link: float
    links: int
    outside: float
    devices: int = 1
    clock: float = 0.0
    unit: int = 0
    share: float = 0.75

    @property
    def axes(self) -> int:
        """Number of axes of a TPU's torus."""
        return self.links // 2


def _tpu(name: str, peak: float, usable: float, bandwidth: float, link: float, links: int, outside: float, **more):
    return Chip(name, "tpu", peak * 1e12, usable * GIB, bandwidth * GB, link * GB, links, outside * GB, **more)


def _gpu(name: str, peak: float, memory: float, bandwidth: float, link: float, outside: float):
    return Chip(name, "gpu", peak * 1e12, _GPU_SHARE * memory * GB, bandwidth * GB, link * GB, 1, outside * GB)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # Clocks are derived from the peaks and the matrix units of 128 x 128 multiply-adds (v6e, tpu7x: 256 x 256).
        _tpu("v4", 275, 30.75, 1228, 50, 6, 3.1, clock=1.05e9, unit=128, share=0.94),
        _tpu("v5e", 197, 15.75, 819, 50, 4, 3.1, clock=1.5e9, unit=128, share=0.92),
        _tpu("v5p", 459, 95.74, 2765, 100, 6, 6.25, clock=1.75e9, unit=128, share=0.94),
        _tpu("v6e", 918, 31.25, 1638, 100, 4, 12.5, clock=1.75e9, unit=256, share=0.78),
        _tpu("tpu7x", 2307, 94.75, 7380, 100, 6, 12.5, devices=2, clock=2.2e9, unit=256, share=0.85),
        _gpu("a100-40", 312, 40, 1555, 300, 25),
        _gpu("a100-80", 312, 80, 2039, 300, 25),
        _gpu("h100", 989, 80, 3350, 450, 50),
        _gpu("h200", 989, 141, 4800, 450, 50),
        _gpu("b200", 2250, 180, 7700, 900, 50),
        # Of one GPU in a workstation: its links are PCIe 4.0 of 16 lanes.
        _gpu("rtx4080", 97.5, 16 * GIB / GB, 716.8, 32, 3),
        _gpu("rtx4090", 165.2, 24 * GIB / GB, 1008, 32, 3),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips of one kind, and how they are connected.

    Attributes:
      name: the text from which the topology was parsed.
      chip: the kind of chip.
      shape: for TPUs, the number of chips along each axis of the torus or mesh; for GPUs, (nodes, GPUs per node).
      slices: number of slices of this shape, with a slower network between them (of groups of nodes, for GPUs).
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Total number of chips, those of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Total number of JAX devices, those of all slices."""
        return self.chips * self.chip.devices

    @property
    def peak(self) -> float:
        """FLOP/s of one device."""
        return self.chip.peak / self.chip.devices

    @property
    def bandwidth(self) -> float:
        """Bytes/s between one device and its memory."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def between_slices(self) -> float:
        """Bytes/s that one device sends to other slices, where all devices of its slice do."""
        return self.chip.outside / self.chip.devices

    def wraps(self, size: int) -> bool:
        """Whether an axis of the torus of this length has wraparound links, which make it a ring.

        On v5e and v6e only axes of 16 wrap around, and on the other TPUs axes whose length is a multiple of 4.
        """
        return size == 16 if self.chip.axes == 2 else size % 4 == 0

    def group_bandwidth(self, group: int) -> float:
        """Bytes/s that one device sends in a collective over `group` devices of a slice, in its best layout.

        A TPU group that is a product of axes of the torus sends along all of them at once: in both directions on an
        axis that is a ring, and in one direction at a time otherwise (the devices at its ends have one neighbour). A
        group that is not a product of whole axes uses one axis. GPUs send over NVLink inside a node, and at their share
        of the network between nodes.
        """
        chip = self.chip
        if chip.kind == "gpu":
            return chip.link if group <= self.shape[-1] else chip.outside
        return max(sum(chip.link * (2 if self.wraps(n) else 1) for n in axes) for axes in self._axes(group)) / (
            chip.devices
        )

    def _axes(self, group: int) -> list[tuple[int, ...]]:
        """The sets of whole torus axes whose product is the group; one axis of length 2 if there are none."""
        group = -(-group // self.chip.devices)
        sizes = [n for n in self.shape if n > 1]
        axes_options = []
        for pick in range(1, 2 ** len(sizes)):
            chosen = tuple(n for i, n in enumerate(sizes) if pick >> i & 1)
            if math.prod(chosen) == group:
                axes_options.append(chosen)
        return axes_options or [(2,)]


def topology(text: str) -> Topology:
    """Parses `v5p:4x4x4`, `v5e:8x8`, `tpu7x:2x2x1`, `h100:8` (one node) or `h100:8x4` (GPUs per node x nodes).

    Raises:
      ValueError: an unknown chip, or a shape that is invalid for this chip.
    """
    name, colon, shape = text.strip().lower().partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known chips: {', '.join(CHIPS)}"
        raise ValueError(f"topology must begin with a known chip, got {text!r}; {hint}")
    chip = CHIPS[name]
    example = f"{name}:8x4 (GPUs a node x nodes)" if chip.kind == "gpu" else f"{name}:{'x'.join('4' * chip.axes)}"
    if not colon or not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", shape):
        raise ValueError(f"topology must say how many chips, as in {example}, got {text!r}")
    sizes = tuple(int(size) for size in shape.split("x"))
    if chip.kind == "gpu":
        if len(sizes) > 2:
            raise ValueError(f"topology must be GPUs a node x nodes, as in {example}, got {text!r}")
        return Topology(text, chip, (sizes[1] if len(sizes) == 2 else 1, sizes[0]))
    if len(sizes) != chip.axes:
        raise ValueError(f"topology of {name} must have {chip.axes} axes, as in {example}, got {text!r}")
    return Topology(text, chip, sizes)
