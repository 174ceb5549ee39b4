"""Whether a generated clip shows the digit and the direction of its caption.

Both tests use pixels alone: a support-vector classifier fitted on real digits, and the motion of the centroid of bright
pixels. Clips hold one bright digit on a dark background (the second half of a "(v2v)" clip is inverted: pass `-x`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.moving_digits import DIRECTIONS, NAMES, SIDE

# Ink below this share of full ink is residual noise of sampling on an empty background.
_PAPER = 0.15
# A digit whose centre moved less than this, in pixels, did not move.
_STILL = 0.5
_STROKES = 16.0  # full ink, in the units of the digits


def ink_levels(x: np.ndarray) -> np.ndarray:
    """Ink from 0 to 1, float64 [..., H, W], of pixels [..., H, W, C] in [-1, 1]; faint ink counts as background.

    Raises:
      ValueError: values that are not finite, which would be classified as an arbitrary digit.
    """
    x = np.asarray(x, np.float64)
    bad = int(np.count_nonzero(~np.isfinite(x)))
    check(bad == 0, f"pixels must be finite, got {bad} values that are not")
    ink = np.clip((x.mean(axis=-1) + 1.0) / 2.0, 0.0, 1.0)
    return np.where(ink < _PAPER, 0.0, ink)


def ink_centroid(ink: np.ndarray) -> np.ndarray:
    """Row and column of the ink's centre of mass, float64 [..., 2]; NaN where there is no ink."""
    mass = ink.sum(axis=(-2, -1))
    rows = ink.sum(axis=-1) @ np.arange(ink.shape[-2])
    columns = ink.sum(axis=-2) @ np.arange(ink.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.stack([rows, columns], axis=-1) / mass[..., None]


def crop_digit(ink: np.ndarray) -> np.ndarray:
    """The 8x8 window that holds the most ink, [n, 8, 8], of frames [n, H, W] (H and W at least 8).

    A narrow digit fits into several windows. Of the windows with equal ink the one with the best centred ink is taken,
    so that the crop does not depend on the position of the digit.
    """
    check(
        ink.ndim == 3 and min(ink.shape[1:]) >= SIDE,
        f"frames must be [n, H, W] with H and W of at least {SIDE}, got {list(ink.shape)}",
    )
    # Pad with background, so that a digit at the border can be centred as well.
    ink = np.pad(ink, ((0, 0), (SIDE // 2, SIDE // 2), (SIDE // 2, SIDE // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(ink, (SIDE, SIDE), axis=(1, 2))
    offsets = np.arange(SIDE) - (SIDE - 1) / 2
    mass = windows.sum(axis=(-2, -1))
    # First moments about the window's centre: the offset of its ink in pixels.
    down, along = np.einsum("nijab,a->nij", windows, offsets), np.einsum("nijab,b->nij", windows, offsets)
    off = np.hypot(down, along) / np.maximum(mass, 1e-9)
    best = (mass - 0.5 * off).reshape(len(ink), -1).argmax(axis=1)
    row, column = np.unravel_index(best, mass.shape[1:])
    return windows[np.arange(len(ink)), row, column]


@functools.cache
def digit_reader() -> Any:
    """A support-vector classifier of cropped digits [n, 64], fitted on the training digits alone.

    The training set also has every digit shifted by a pixel, as the crop of a generated digit may be.
    """
    from sklearn.svm import SVC

    source = digits("train")
    ink = np.pad(source.images[..., 0] / _STROKES, ((0, 0), (1, 1), (1, 1)))
    crops = crop_digit(np.where(ink < _PAPER, 0.0, ink))
    shifted = [crops, *(_shifted(crops, *step) for step in DIRECTIONS.values())]
    model = SVC(C=10.0, gamma="scale")
    return model.fit(np.concatenate(shifted).reshape(-1, SIDE * SIDE), np.tile(source.labels, len(shifted)))


def read_digits(x: np.ndarray) -> np.ndarray:
    """The digit that every frame shows, int64 [...], of frames [..., H, W, C] in [-1, 1]; -1 for an empty frame.

    Raises:
      ValueError: frames smaller than 8x8, or values that are not finite.
    """
    ink = ink_levels(x)
    flat = ink.reshape(-1, *ink.shape[-2:])
    digits = digit_reader().predict(crop_digit(flat).reshape(len(flat), -1)).astype(np.int64)
    # A frame with less ink than the tip of a stroke is empty.
    return np.where(flat.sum(axis=(1, 2)) < 1.0, -1, digits).reshape(ink.shape[:-2])


def read_directions(x: np.ndarray) -> list[str]:
    """The direction of the digit of every clip [n, T, H, W, C]: "left", "right", "up", "down", or "none".

    It is that of the ink's centre from frame 0 to frame T // 4, for which a caption's direction holds.
    """
    displacements = ink_centroid(ink_levels(x[:, max(1, x.shape[1] // 4)])) - ink_centroid(ink_levels(x[:, 0]))
    directions = []
    for down, right in displacements:
        distance = max(abs(down), abs(right))
        if not distance >= _STILL:  # "none" also where a frame is empty and the displacement NaN
            directions.append("none")
        elif abs(down) > abs(right):
            directions.append("down" if down > 0 else "up")
        else:
            directions.append("right" if right > 0 else "left")
    return directions


def caption_meaning(caption: str) -> tuple[int, str]:
    """The digit and the direction of a caption such as "a seven moving left".

    Raises:
      ValueError: a caption that does not name exactly one of each.
    """
    words = caption.split()
    named = [NAMES.index(word) for word in words if word in NAMES]
    ways = [word for word in words if word in DIRECTIONS]
    check(
        len(named) == 1 and len(ways) == 1,
        f"caption must name one digit and one direction, got {caption!r}",
    )
    return named[0], ways[0]


@dataclasses.dataclass(frozen=True)
class CaptionAgreement:
    """Agreement of clips with their captions.

    Attributes:
      frames_right, frames: number of frames with the caption's digit, and of all frames.
      digits_right: clips with that digit in most frames; directions_right: clips with the caption's direction.
      clips: number of all clips.
    """

    frames_right: int
    frames: int
    digits_right: int
    directions_right: int
    clips: int

    @property
    def frame_share(self) -> float:
        """Share of frames, 0 to 1."""
        return self.frames_right / self.frames

    @property
    def direction_share(self) -> float:
        """Share of clips, 0 to 1."""
        return self.directions_right / self.clips

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = {"frame_share": self.frame_share, "direction_share": self.direction_share}
        return dataclasses.asdict(self) | shares

    def __str__(self) -> str:
        return (
            f"digit recognised in {self.frames_right} of {self.frames} frames ({100 * self.frame_share:.1f} %), "
            f"in most frames of {self.digits_right} of {self.clips} clips; direction right in "
            f"{self.directions_right} of {self.clips} clips ({100 * self.direction_share:.1f} %)"
        )


def caption_agreement(x: np.ndarray, captions: Sequence[str]) -> CaptionAgreement:
    """Compares clips [n, T, H, W, C] in [-1, 1] with their captions.

    Raises:
      ValueError: another number of captions, a caption that names no digit or direction, or bad pixels.
    """
    frames, directions = clip_agreement(x, captions)
    return CaptionAgreement(
        frames_right=int(frames.sum()),
        frames=frames.size,
        digits_right=int((frames.mean(axis=1) > 0.5).sum()),
        directions_right=int(directions.sum()),
        clips=len(frames),
    )


def clip_agreement(x: np.ndarray, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of clips [n, T, H, W, C] show the digit of the caption, bool [n, T]; which clips move in its
    direction, bool [n]. Errors as in `caption_agreement`.
    """
    x = np.asarray(x)
    check(x.ndim == 5 and len(x) > 0, f"clips must be [n, T, H, W, C] with n above 0, got {list(x.shape)}")
    check(len(captions) == len(x), f"captions must be one for each of {len(x)} clips, got {len(captions)}")
    meanings = [caption_meaning(caption) for caption in captions]
    frames = read_digits(x) == np.asarray([digit for digit, _ in meanings])[:, None]
    directions = [read == way for read, (_, way) in zip(read_directions(x), meanings, strict=True)]
    return frames, np.asarray(directions)


def _shifted(crops: np.ndarray, down: int, right: int) -> np.ndarray:
    """Crops [n, 8, 8] shifted by a pixel and padded with background."""
    padded = np.pad(crops, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE]
