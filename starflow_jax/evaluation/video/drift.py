"""Drift of clips: the distance of the features of frame t from those of frame 0.

A feature is any function of frames. Two come with this file: pixels, which also change when objects move, and the
amplitudes of the two-dimensional Fourier transform, which hardly do. A network's features can be given instead.
Real clips of the same length show how much of the change is motion and not drift.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.video.motion import luma

Features = Callable[[np.ndarray], np.ndarray]


def pixel_features(frames: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1, float64 [T, H W C], of uint8 [T, H, W, C]."""
    return np.asarray(frames, np.float64).reshape(len(frames), -1) / 255.0


def spectrum_features(frames: np.ndarray) -> np.ndarray:
    """Amplitudes of the brightness's Fourier transform, float64 [T, H (W // 2 + 1)], each frame's mean taken away.

    They do not change when the whole frame shifts cyclically or an object moves over a uniform background; they
    change with its shape, size and contrast.
    """
    grey = luma(frames) / 255.0
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1)
    amplitudes = np.abs(np.fft.rfft2(grey - np.median(border, axis=1)[:, None, None], norm="ortho"))
    return np.asarray(amplitudes.reshape(len(grey), -1))


FEATURES: Mapping[str, Features] = {"pixels": pixel_features, "spectrum": spectrum_features}


def drift_distances(frames: np.ndarray, features: Features) -> np.ndarray:
    """Distance of every frame's features to those of frame 0, relative to these, float64 [T]; the first is 0.

    |f(x_t) - f(x_0)| / |f(x_0)|, Euclidean; NaN where the features of frame 0 are all zero.

    Args:
      frames: uint8 [T, H, W, C]; features: of [T, H, W, C], [T, D].

    Raises:
      ValueError: an invalid shape, or features that are not [T, D] or not finite.
    """
    frames = np.asarray(frames)
    check(frames.ndim == 4 and frames.size > 0, f"clip must be [T, H, W, C], all above 0, got {list(frames.shape)}")
    vectors = np.asarray(features(frames), np.float64)
    check(
        vectors.ndim == 2 and len(vectors) == len(frames) and bool(np.isfinite(vectors).all()),
        f"features must be finite, [{len(frames)}, D], got {list(vectors.shape)}",
    )
    first = float(np.linalg.norm(vectors[0]))
    if first == 0.0:
        return np.full(len(frames), math.nan)
    return np.asarray(np.linalg.norm(vectors - vectors[0], axis=1) / first)


@dataclasses.dataclass(frozen=True)
class Drift:
    """Change of a quantity of frames along clips.

    Attributes:
      mean: by frame, over the clips that have it; error: its standard error; clips: number that have it.
      slope: of a straight line fitted to every clip, for each frame, mean over clips; slope_error: its standard error.
      late: mean over clips of (last quarter - first quarter), the quarters of at least one frame; late_error: the same.
    """

    mean: tuple[float, ...]
    error: tuple[float, ...]
    clips: tuple[int, ...]
    slope: float
    slope_error: float
    late: float
    late_error: float

    @classmethod
    def from_curves(cls, curves: Sequence[np.ndarray]) -> Drift:
        """Computes the drift of a quantity of every frame of every clip, [T] each; clips may differ in length.

        Frames that are not finite are left out, and clips with fewer than two other frames have no slope.

        Raises:
          ValueError: no clips.
        """
        check(len(curves) > 0, "curves must contain at least one clip, got none")
        mean, error, counts, slopes, gaps = [], [], [], [], []
        for frame in range(max(map(len, curves))):
            values = np.asarray([curve[frame] for curve in curves if frame < len(curve)], np.float64)
            values = values[np.isfinite(values)]
            mean.append(float(values.mean()) if len(values) else math.nan)
            error.append(standard_error(values))
            counts.append(len(values))
        for curve in curves:
            indices = np.flatnonzero(np.isfinite(curve))
            if len(indices) > 1:
                values = np.asarray(curve, np.float64)[indices]
                quarter = max(1, len(values) // 4)
                slopes.append(float(np.polyfit(indices, values, 1)[0]))
                gaps.append(float(values[-quarter:].mean() - values[:quarter].mean()))
        samples = [np.asarray(values, np.float64) for values in (slopes, gaps)]
        slope, late = (float(values.mean()) if len(values) else math.nan for values in samples)
        slope_error, late_error = (standard_error(values) for values in samples)
        return cls(tuple(mean), tuple(error), tuple(counts), slope, slope_error, late, late_error)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
