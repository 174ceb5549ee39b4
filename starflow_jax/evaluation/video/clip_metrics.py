"""Metrics of clips: quality against a reference, motion and drift of one clip, and summaries of many clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.moving_digits import DIRECTIONS
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.video.drift import FEATURES, Drift, Features, drift_distances
from starflow_jax.evaluation.video.motion import Method, Motion, centroids, direction_agreement, luma, motion
from starflow_jax.evaluation.video.psnr_ssim import WINDOW, frame_psnr, frame_ssim

METHODS: tuple[Method, ...] = get_args(Method)
BITS = "bits/dim"


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Parameters of the measures of motion.

    Attributes:
      direction_frames: displacements from the start for which the caption's direction holds; None for a quarter of the
        frames (as for moving digits, `data.sources.moving_digits`).
      block: side of the blocks that are tracked, at most half a side of the frame; reach: their largest displacement,
        see `motion.block_displacements`.
    """

    direction_frames: int | None = None
    block: int = 8
    reach: int = 4


@dataclasses.dataclass(frozen=True, eq=False)
class ClipQuality:
    """Metrics of one clip.

    Attributes:
      name, caption: of the clip; frames: number of frames; path: float64 [T, 2], of its centroid.
      motion: by method; direction: cosine between its motion and the caption's direction, NaN without one.
      curves: quantities of every frame, float64 [T]: "pixels", "spectrum" (distances to frame 0), and where available
        "bits/dim", "PSNR", "SSIM".
    """

    name: str
    caption: str
    frames: int
    path: np.ndarray
    motion: Mapping[Method, Motion]
    direction: float
    curves: Mapping[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "caption": self.caption,
            "frames": self.frames,
            "static": self.static,
            "direction": self.direction,
            "motion": {method: motion.to_dict() for method, motion in self.motion.items()},
            "curves": {name: curve.tolist() for name, curve in self.curves.items()},
        }

    @property
    def static(self) -> bool:
        """Whether no method detects motion."""
        return all(motion.static for motion in self.motion.values())


def clip_quality(
    frames: np.ndarray,
    *,
    name: str = "",
    caption: str = "",
    reference: np.ndarray | None = None,
    bits: np.ndarray | None = None,
    features: Mapping[str, Features] = FEATURES,
    tracking: Tracking = Tracking(),
) -> ClipQuality:
    """Measures a clip.

    Args:
      frames: uint8 [T, H, W, C], T of 2 or more.
      name, caption: of it; a caption with one of left, right, up and down gives the direction of the motion.
      reference: uint8 [T', H, W, C], the clip that it should equal; the common frames are compared. SSIM needs
        11 x 11 pixels.
      bits: float [T], bits/dim of its frames.
      features: functions of frames whose drift is measured, by name.
      tracking: parameters of the measures of motion.

    Raises:
      ValueError: an invalid shape, a single frame, or bits of another number of frames.
    """
    grey = luma(frames)
    count = len(grey)
    side = max(2, min(tracking.block, min(grey.shape[1:]) // 2))
    motions = {method: motion(frames, method, block=side, reach=tracking.reach) for method in METHODS}
    curves = {label: drift_distances(frames, function) for label, function in features.items()}
    if bits is not None:
        check(np.shape(bits) == (count,), f"bits must be [{count}], got {list(np.shape(bits))}")
        curves[BITS] = np.asarray(bits, np.float64)
    if reference is not None:
        common = min(count, len(reference))
        pair = frames[:common], reference[:common]
        curves["PSNR"] = frame_psnr(*pair)
        if min(grey.shape[1:]) >= WINDOW:
            curves["SSIM"] = frame_ssim(*pair)
    ways = [word for word in caption.split() if word in DIRECTIONS]
    direction = math.nan
    if len(ways) == 1:
        first = max(1, count // 4) if tracking.direction_frames is None else tracking.direction_frames
        direction = direction_agreement(frames, DIRECTIONS[ways[0]], first=first)
    return ClipQuality(name, caption, count, centroids(grey), motions, direction, curves)


def group_figures(clips: Sequence[ClipQuality]) -> dict[str, Any]:
    """Summary of clips as plain values: means with standard errors over clips, drift.

    Returns:
      "clips", "static" (how many), "direction" (share within 45 degrees, of those captioned with one; None without),
      "motion" (by method, of speed, consistency, evenness and change [mean, error, clips that have one]), "drift" (by
      curve, of `Drift`).
    """
    check(len(clips) > 0, "clips must contain at least one clip, got none")
    captioned = [clip for clip in clips if any(word in DIRECTIONS for word in clip.caption.split())]
    right = [clip.direction > math.cos(math.pi / 4) for clip in captioned]  # NaN, of a static clip, counts as wrong
    names = ("speed", "consistency", "evenness", "change")
    motions = {
        method: {name: _mean([float(getattr(clip.motion[method], name)) for clip in clips]) for name in names}
        for method in METHODS
    }
    labels = dict.fromkeys(label for clip in clips for label in clip.curves)
    curves = {label: [clip.curves[label] for clip in clips if label in clip.curves] for label in labels}
    return {
        "clips": len(clips),
        "static": sum(clip.static for clip in clips),
        "direction": {"share": float(np.mean(right)), "clips": len(right)} if right else None,
        "motion": motions,
        "drift": {label: Drift.from_curves(of_clips).to_dict() for label, of_clips in curves.items()},
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    finite = np.asarray([value for value in values if not math.isnan(value)])
    return {
        "mean": float(finite.mean()) if len(finite) else math.nan,
        "error": standard_error(finite),
        "clips": len(finite),
    }
