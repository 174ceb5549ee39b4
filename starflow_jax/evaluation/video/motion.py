"""Motion of clips without an optical-flow network: displacements of the centroid, of the whole frame, and of blocks.

A displacement (down, right) in pixels is the motion from one frame to the next. Three measures:

- centroid: the centre of all pixels that differ from the background, the median colour of the border. For one object.
- whole frame: the peak of the phase correlation, to a tenth of a pixel. For a moving camera, or one object on a
  uniform background.
- blocks: the best match of every block within a range, and one step of Lucas and Kanade for the fraction of a pixel:
  a coarse optical flow. Blocks without texture, whose match is arbitrary, are left out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from starflow_jax.core.config.checks import check, check_integer

# A clip with a speed below this, in pixels per frame, counts as static.
STILL = 0.1
# A block whose levels (0..255) have a standard deviation below this has no texture to follow.
_TEXTURE = 4.0
# Pixels whose difference from the background is below this share of the largest difference count as background.
_FAINT = 0.15

Method = Literal["centroid", "frame", "blocks"]


def luma(frames: np.ndarray) -> np.ndarray:
    """Brightness, float64 [T, H, W], of frames [T, H, W, C], C of 1 or 3 (the weights of ITU-R BT.601).

    Raises:
      ValueError: an invalid shape, or values that are not finite.
    """
    frames = np.asarray(frames, np.float64)
    check(
        frames.ndim == 4 and frames.size > 0 and frames.shape[-1] in (1, 3),
        f"clip must be [T, H, W, C] with C of 1 or 3, all above 0, got {list(frames.shape)}",
    )
    check(bool(np.isfinite(frames).all()), "clip must be finite")
    return frames[..., 0] if frames.shape[-1] == 1 else frames @ np.array([0.299, 0.587, 0.114])


def centroids(grey: np.ndarray) -> np.ndarray:
    """Row and column of the centre of the foreground, float64 [T, 2]; NaN for a uniform frame."""
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1)
    weight = np.abs(grey - np.median(border, axis=1)[:, None, None])
    weight = np.where(weight < _FAINT * max(float(weight.max()), 1.0), 0.0, weight)
    mass = weight.sum(axis=(1, 2))
    rows = weight.sum(axis=2) @ np.arange(grey.shape[1])
    columns = weight.sum(axis=1) @ np.arange(grey.shape[2])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([rows, columns], axis=1) / mass[:, None]


def centroid_displacements(grey: np.ndarray) -> np.ndarray:
    """Displacements of the centroid between frames, float64 [T - 1, 2]; NaN where either frame is uniform."""
    return np.diff(centroids(grey), axis=0)


def frame_displacements(grey: np.ndarray, *, fraction: int = 10) -> np.ndarray:
    """Displacements of the frame by phase correlation, to 1 / fraction of a pixel, float64 [T - 1, 2]; NaN if uniform.

    The frame is taken as periodic, so that a displacement of more than half of it appears with the opposite sign.
    """
    from skimage.registration import phase_cross_correlation

    displacements = np.full((len(grey) - 1, 2), math.nan)
    for step in range(len(grey) - 1):
        if np.ptp(grey[step]) > 0 and np.ptp(grey[step + 1]) > 0:
            shift, _, _ = phase_cross_correlation(
                grey[step + 1], grey[step], upsample_factor=fraction, normalization="phase"
            )
            displacements[step] = shift
    return displacements


def block_displacements(grey: np.ndarray, *, block: int = 8, reach: int = 4) -> np.ndarray:
    """Displacements of blocks, float64 [T - 1, h, w, 2], h and w the blocks in a column and row; NaN without texture.

    The match has the smallest mean absolute difference among all displacements up to `reach`; ties go to the shortest.
    The next frame is padded by repeating its border pixels.

    Args:
      grey: [T, H, W]; block: side in pixels; reach: largest displacement along each axis.

    Raises:
      ValueError: numbers out of range, or frames smaller than a block.
    """
    check_integer("block", block, minimum=2)
    check_integer("reach", reach, minimum=1)
    _, height, width = grey.shape
    check(block <= min(height, width), f"block must be at most the frame's {height} x {width}, got {block}")
    # One step at a time: the errors of all candidates of a long clip would fill the memory.
    return np.concatenate([_matched(grey[step : step + 2], block, reach) for step in range(len(grey) - 1)])


def _matched(grey: np.ndarray, block: int, reach: int) -> np.ndarray:
    """`block_displacements` of checked arguments."""
    _, height, width = grey.shape
    rows, columns = height // block, width // block
    cut = grey[:, : rows * block, : columns * block]
    padded = np.pad(grey[1:], ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    side = 2 * reach + 1
    errors = np.empty((len(grey) - 1, rows, columns, side, side))
    for down in range(side):
        for right in range(side):
            shifted = padded[:, down : down + rows * block, right : right + columns * block]
            errors[..., down, right] = _block_means(np.abs(shifted - cut[:-1]), block)
    texture = np.sqrt(np.maximum(_block_means(cut[:-1] ** 2, block) - _block_means(cut[:-1], block) ** 2, 0.0))
    offsets = np.arange(side) - reach
    # A small penalty on length, so that the shortest of equal matches wins.
    length = 1e-6 * np.hypot(offsets[:, None], offsets[None])
    best = (errors + length).reshape(*errors.shape[:3], -1).argmin(axis=-1)
    down, right = np.unravel_index(best, (side, side))
    displacements = np.stack([offsets[down], offsets[right]], axis=-1) + _remainder(
        cut[:-1], padded, down, right, block
    )
    return np.where(texture[..., None] >= _TEXTURE, displacements, math.nan)


def _block_means(values: np.ndarray, block: int) -> np.ndarray:
    count, height, width = values.shape
    return values.reshape(count, height // block, block, width // block, block).mean(axis=(2, 4))


def _remainder(frames: np.ndarray, padded: np.ndarray, down: np.ndarray, right: np.ndarray, block: int) -> np.ndarray:
    """The subpixel part of displacements, at most half a pixel along each axis, [T - 1, h, w, 2].

    One step of least squares on the gradient (Lucas and Kanade 1981); 0 where the match is exact, or where the block
    has structure along one direction alone.
    """
    steps, rows, columns = down.shape
    within = np.arange(block)
    at = (
        np.arange(steps)[:, None, None, None, None],
        (block * np.arange(rows)[:, None] + down)[..., None, None] + within[:, None],
        (block * np.arange(columns) + right)[..., None, None] + within,
    )
    blocks = frames.reshape(steps, rows, block, columns, block).swapaxes(2, 3)
    gap = padded[at] - blocks
    slopes = [gradient[at] for gradient in np.gradient(padded, axis=(1, 2))]
    (a, b), (_, c) = [[(one * other).sum(axis=(-2, -1)) for other in slopes] for one in slopes]
    p, q = ((slope * gap).sum(axis=(-2, -1)) for slope in slopes)
    determinant = a * c - b * b
    solid = determinant > 1e-3 * np.maximum(a + c, 1e-9) ** 2
    safe = np.where(solid, determinant, 1.0)
    remainder = np.stack([-(c * p - b * q) / safe, -(a * q - b * p) / safe], axis=-1)
    return np.where(solid[..., None], np.clip(remainder, -0.5, 0.5), 0.0)


@dataclasses.dataclass(frozen=True)
class Motion:
    """Motion of one clip; NaN where a quantity is undefined.

    Attributes:
      speed: mean length of a displacement, pixels per frame (of blocks: of those with texture).
      consistency: mean cosine of the angle between a displacement and the next, over pairs that both move: 1 for a
        straight path, 0 at random, -1 for constant reversals. An object that bounces has less than 1 in real clips too.
      evenness: mean of 1 - |next - this| / (|next| + |this|): 1 for a constant velocity, 0 for jumps.
      direction: mean displacement, (down, right) in pixels per frame.
      change: mean absolute difference of successive frames, levels of 255 (1 - change / 255 is VBench's
        temporal flickering).
      static: whether the speed is below `STILL` (or unknown) and the change below one level.
    """

    speed: float
    consistency: float
    evenness: float
    direction: tuple[float, float]
    change: float
    static: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def motion(frames: np.ndarray, method: Method = "centroid", *, block: int = 8, reach: int = 4) -> Motion:
    """Measures the motion of a clip.

    Args:
      frames: uint8 [T, H, W, C], T of 2 or more.
      method: the measure (see the module); block, reach: of method "blocks".

    Raises:
      ValueError: an invalid shape or method, or a single frame.
    """
    grey = luma(frames)
    check(len(grey) > 1, f"motion needs two frames or more, got {len(grey)}")
    check(method in ("centroid", "frame", "blocks"), f"method must be centroid, frame or blocks, got {method!r}")
    if method == "blocks":
        steps = block_displacements(grey, block=block, reach=reach).reshape(len(grey) - 1, -1, 2)
    else:
        steps = (centroid_displacements if method == "centroid" else frame_displacements)(grey)[:, None]
    return summary(steps, change=float(np.abs(np.diff(grey, axis=0)).mean()))


def summary(steps: np.ndarray, *, change: float) -> Motion:
    """`Motion` of displacements [T - 1, n, 2] of n tracked objects, NaN where one is not visible."""
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    finite = ~np.isnan(lengths)
    speed = float(lengths[finite].mean()) if finite.any() else math.nan
    this, following = steps[:-1], steps[1:]
    long_this, long_following = lengths[:-1], lengths[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        moving = (long_this > STILL) & (long_following > STILL)
        cosine = (this * following).sum(axis=-1) / (long_this * long_following)
        both = (long_this + long_following) > STILL
        jump = np.hypot(*np.moveaxis(following - this, -1, 0)) / (long_this + long_following)
    return Motion(
        speed=speed,
        consistency=float(cosine[moving].mean()) if moving.any() else math.nan,
        evenness=float(1.0 - jump[both].mean()) if both.any() else math.nan,
        direction=tuple(float(value) for value in steps[finite].mean(axis=0)) if finite.any() else (math.nan, math.nan),  # type: ignore[arg-type]
        change=change,
        static=bool(not speed >= STILL and change < 1.0),
    )


def direction_agreement(frames: np.ndarray, direction: tuple[float, float], *, first: int | None = None) -> float:
    """Cosine of the angle between the centroid's displacement and a direction, -1 to 1; NaN where it does not move.

    Args:
      frames: uint8 [T, H, W, C]; direction: (down, right), not both 0.
      first: number of displacements from the start to use, None for all; for example those before an object turns.

    Raises:
      ValueError: as `motion`, or no direction.
    """
    check(any(direction), "direction must not be (0, 0)")
    grey = luma(frames)
    check(len(grey) > 1, f"motion needs two frames or more, got {len(grey)}")
    centres = centroids(grey[: None if first is None else first + 1])
    down, right = centres[-1] - centres[0]
    length = math.hypot(down, right)
    if not length > STILL:
        return math.nan
    return float((down * direction[0] + right * direction[1]) / (length * math.hypot(*direction)))
