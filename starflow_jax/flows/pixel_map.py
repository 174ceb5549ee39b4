"""The fixed bijection between dequantised pixels, or vectors, and the tokens of a flow, with its exact Jacobian.

A pixel of level v is x = 2 (v + u) / levels - 1, u uniform in [0, 1) (`data.decoding.dequantise`). Where an image has
a sharp background, such as black, an affine block must shrink its scale to the width of one cell, far from where it
starts, and still fits a normal density to a uniform one: log2(2 pi e / 12) / 2 = 0.2546 bits per pixel at best. The map
"normal-cells" gives such a level a wide cell and maps its uniform noise to a normal variable, cut off in the tails:

    T(v + u) = start of the cell + s (Phi^-1((1 - kept) / 2 + kept u) + q),   q = Phi^-1((1 + kept) / 2),

so that a block that is certain of this level pays at most -log2(kept), 0.0145 bits for 0.99. All other cells keep the
width 1, and T is scaled to [-1, 1]. Bits/dim remain the bound by uniform dequantisation. In other words, the flow is
fitted to integers that were dequantised with noise of a truncated normal density, and pays for its entropy.

Outside of [-1, 1) the map continues linearly, so it is a bijection of the real line. "logit" maps an interval around
[-1, 1) onto the real line. "affine" standardises vectors.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from starflow_jax.core.config.pixel_map_config import PixelMapConfig


def map_pixels(
    config: PixelMapConfig, x: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Mapped pixels and log |dy/dx| of each, float32, of dequantised pixels x in [-1, 1)."""
    if config.kind == "affine":
        shift, scale = _affine(config, x)
        return (x - shift) / scale, jnp.broadcast_to(-jnp.log(scale), x.shape)
    if config.kind == "logit":
        return _logit(config, x)
    cells, total = normal_cells(config)
    position = (x + 1.0) * (config.levels / 2.0)
    mapped, log_slope = position, jnp.zeros_like(position)
    for cell in cells:
        noise = jnp.clip(position - cell.level, 0.0, 1.0)
        quantile = ndtri(cell.tail + config.kept * noise)
        mapped = mapped + cell.width * (quantile + cell.end) / (2.0 * cell.end) - noise
        # d quantile / d noise = kept / density(quantile)
        inside = (position >= cell.level) & (position < cell.level + 1)
        slope = math.log(cell.width * config.kept * math.sqrt(2.0 * math.pi) / (2.0 * cell.end)) + 0.5 * quantile**2
        log_slope = jnp.where(inside, slope, log_slope)
    return mapped * (2.0 / total) - 1.0, log_slope + math.log(config.levels / total)


def unmap_pixels(config: PixelMapConfig, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `map_pixels`."""
    if config.kind == "affine":
        shift, scale = _affine(config, y)
        return shift + scale * y
    if config.kind == "logit":
        return ((jax.nn.sigmoid(y) - config.alpha) / (1.0 - 2.0 * config.alpha)) * 2.0 - 1.0
    cells, total = normal_cells(config)
    mapped = (y + 1.0) * (total / 2.0)
    position = mapped
    for cell in cells:
        share = jnp.clip((mapped - cell.start) / cell.width, 0.0, 1.0)
        noise = (ndtr(cell.end * (2.0 * share - 1.0)) - cell.tail) / config.kept
        position = position - cell.width * share + noise
    return position * (2.0 / config.levels) - 1.0


def _affine(config: PixelMapConfig, x: Float[Array, "*shape"]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Shift and scale of every number, in the layout [H, W, C] of one example."""
    shift, scale = (jnp.asarray(values, jnp.float32).reshape(x.shape[-3:]) for values in (config.shift, config.scale))
    return shift, scale


@dataclasses.dataclass(frozen=True)
class NormalCell:
    """A normal cell: its level; its start and width after the map; the probability of a tail, and its quantile -end."""

    level: int
    start: float
    width: float
    tail: float
    end: float


def normal_cells(config: PixelMapConfig) -> tuple[list[NormalCell], float]:
    """The normal cells, and the total width of all cells, in cells of an ordinary level."""
    tail = (1.0 - config.kept) / 2.0
    end, widened, cells = -NormalDist().inv_cdf(tail), 0.0, []
    for level, deviation in config.normal_cells:
        width = 2.0 * end * deviation
        cells.append(NormalCell(level, level + widened, width, tail, end))
        widened += width - 1.0
    return cells, config.levels + widened


def _logit(config: PixelMapConfig, x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    share = 1.0 - 2.0 * config.alpha
    unit = config.alpha + share * (x + 1.0) / 2.0
    log_slope = math.log(share / 2.0) - jnp.log(unit) - jnp.log1p(-unit)
    return jnp.log(unit) - jnp.log1p(-unit), log_slope


def token_basis(config: PixelMapConfig, channels: int, patch_size: int, family: str) -> Float[np.ndarray, "c c"] | None:
    """The orthogonal matrix [c, c] that a token of pixels is multiplied by from the right; None for the identity."""
    if config.basis == "pixels" or patch_size == 1:
        return None
    rows, columns = np.arange(patch_size)[:, None], np.arange(patch_size)[None]
    cosine = np.sqrt(2.0 / patch_size) * np.cos(math.pi * columns * (rows + 0.5) / patch_size)
    cosine[:, 0] /= math.sqrt(2.0)
    square, same = np.kron(cosine, cosine), np.eye(channels)
    return (np.kron(same, square) if family == "tarflow" else np.kron(square, same)).astype(np.float32)
