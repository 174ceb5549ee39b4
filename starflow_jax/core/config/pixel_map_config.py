"""Configuration of the fixed map between pixels, or vectors, and the data side of a flow."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real


@dataclasses.dataclass(frozen=True)
class PixelMapConfig:
    """A fixed bijection of dequantised pixels in front of a flow, with its exact Jacobian (`flows.pixel_map`).

    Attributes:
      levels: number of levels of a pixel; those of the data. Not of "affine".
      kind: "normal-cells" widens the cells of some levels and gives their uniform noise the shape of a normal density,
        so that an affine block can fit a level that is certain; "logit" is logit(alpha + (1 - 2 alpha) y) of y in
        [0, 1); "affine" is (x - shift) / scale, which standardises vectors.
      normal_cells: (level, width) pairs of "normal-cells" in increasing order of the levels: the standard deviation of
        the normal density, in cells of an ordinary level.
      kept: probability of a normal variable to fall inside a normal cell. The rest, 1 - kept, lies outside of it and
        costs -log2(kept) bits.
      alpha: of "logit".
      shift, scale: of "affine", one for each number of an example.
      basis: the channels of a token are its pixels, or their discrete "cosine" transform, an orthogonal basis.
    """

    levels: int = 256
    kind: Literal["normal-cells", "logit", "affine"] = "normal-cells"
    normal_cells: tuple[tuple[int, float], ...] = ((0, 8.0),)
    kept: float = 0.99
    alpha: float = 0.05
    basis: Literal["pixels", "cosine"] = "pixels"
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self)
        check_integer("pixel_map.levels", self.levels, minimum=2, maximum=256)
        check_real("pixel_map.kept", self.kept, minimum=0.5)
        # The quantile of a tail of less than that is not finite in float32.
        check(self.kept <= 0.9999, f"pixel_map.kept must be at most 0.9999, got {self.kept}")
        check_real("pixel_map.alpha", self.alpha, minimum=1e-6)
        check(self.alpha < 0.5, f"pixel_map.alpha must be below 0.5, got {self.alpha}")
        check(
            self.kind != "normal-cells" or len(self.normal_cells) > 0,
            "pixel_map.normal_cells must name at least one level for kind 'normal-cells', got none",
        )
        check(
            (self.kind == "affine") == (len(self.shift) > 0) and len(self.shift) == len(self.scale),
            "pixel_map.shift and pixel_map.scale must have a number for each number of an example for kind 'affine', "
            f"and none for any other, got {len(self.shift)} and {len(self.scale)} for kind {self.kind!r}",
        )
        for shift, scale in zip(self.shift, self.scale, strict=True):
            check_real("pixel_map.shift", shift)
            check_real("pixel_map.scale", scale, minimum=1e-30)
        previous = -1
        for cell in self.normal_cells:
            check(
                isinstance(cell, tuple) and len(cell) == 2,
                f"pixel_map.normal_cells must be pairs (level, width), got {cell!r}",
            )
            level, width = cell
            check_integer("pixel_map.normal_cells level", level, minimum=0, maximum=self.levels - 1)
            check_real("pixel_map.normal_cells width", width, minimum=1e-3, maximum=1e6)
            check(
                level > previous,
                f"pixel_map.normal_cells must have levels in increasing order, got {level} after {previous}",
            )
            previous = level
