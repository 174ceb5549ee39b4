"""PSNR and SSIM of every frame of a clip against a reference.

SSIM is that of Wang et al. (IEEE TIP 13, 2004): an 11 x 11 Gaussian window of standard deviation 1.5, K1 = 0.01,
K2 = 0.03, biased covariances, the mean over the places where the window fits. (`quality.ssim` has a uniform window of
7, which frames of 8 pixels still hold.)
"""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.video.denoiser_quality import psnr

WINDOW, SIGMA = 11, 1.5
_RANGE = 255.0


def frame_psnr(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of every frame in dB, float64 [T]: 10 log10(255^2 / mean square error).

    Args:
      found, reference: uint8 [T, H, W, C], or floating point on the same scale of 0..255; grey ones compare with RGB.

    Returns:
      Infinite where the frames are equal.

    Raises:
      ValueError: shapes that differ, or values that are not finite.
    """
    return psnr(*(frames * (2.0 / _RANGE) for frames in _pair(found, reference)))


def frame_ssim(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity of every frame, float64 [T], at most 1; colours are averaged.

    Args and errors as of `frame_psnr`; frames must be at least 11 x 11.
    """
    from skimage.metrics import structural_similarity

    found, reference = _pair(found, reference)
    check(
        min(found.shape[1:3]) >= WINDOW,
        f"frames must be at least {WINDOW} x {WINDOW} for SSIM, got {found.shape[1]} x {found.shape[2]}",
    )
    values = [
        structural_similarity(
            mine,
            theirs,
            gaussian_weights=True,
            sigma=SIGMA,
            use_sample_covariance=False,
            data_range=_RANGE,
            channel_axis=-1,
        )
        for mine, theirs in zip(found, reference, strict=True)
    ]
    return np.asarray(values, np.float64)


def _pair(found: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    if found.ndim == reference.ndim == 4 and found.shape[:3] == reference.shape[:3]:
        channels = {found.shape[3], reference.shape[3]}
        if channels == {1, 3}:  # a grey file among coloured ones
            found, reference = (np.broadcast_to(clip, (*clip.shape[:3], 3)) for clip in (found, reference))
    check(
        found.shape == reference.shape and found.ndim == 4 and found.size > 0,
        "clips must be two arrays [T, H, W, C] of one shape, none of them 0, "
        f"got {list(found.shape)} and {list(reference.shape)}",
    )
    for name, values in (("found", found), ("reference", reference)):
        check(bool(np.isfinite(values).all()), f"{name} must be finite")
    return found, reference
