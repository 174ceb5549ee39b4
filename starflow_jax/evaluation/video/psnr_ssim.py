"""PSNR and SSIM of images and clips against a reference.

`psnr` and `ssim` take batches of clips with pixels in [-1, 1] and give one value for each clip; `frame_psnr` and
`frame_ssim` take one clip with pixels in [0, 255] and give one value for each frame. `frame_ssim` is the SSIM of Wang
et al. (IEEE TIP 13, 2004): an 11 x 11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03, biased
covariances, averaged over the positions where the window fits. `ssim` uses a uniform 7 x 7 window, which also fits
frames of 8 x 8 pixels.
"""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check

WINDOW, SIGMA = 11, 1.5  # size and standard deviation of the Gaussian window of `frame_ssim`
_FRAME_RANGE, _CLIP_RANGE = 255.0, 2.0
_UNIFORM_WINDOW = 7  # size of the window of `ssim`; smaller frames use the largest odd window that fits


def psnr(clips: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of every clip in dB, float64 [n]: 10 log10(2^2 / mean square error).

    Args:
      clips, clean: clips [n, T, H, W, C] (or images [n, H, W, C]) in [-1, 1].

    Returns:
      float64 [n]; infinite where a clip equals the clean one.

    Raises:
      ValueError: shapes that differ, or values that are not finite.
    """
    clips, clean = _checked_clips(clips, clean)
    square = ((clips - clean) ** 2).reshape(len(clips), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(_CLIP_RANGE**2 / square)


def ssim(clips: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Structural similarity of every clip, float64 [n], the mean over its frames (scikit-image's, uniform window).

    Args and errors are those of `psnr`; frames must be at least 3 x 3.
    """
    from skimage.metrics import structural_similarity

    clips, clean = _checked_clips(clips, clean)
    smallest = min(clips.shape[-3:-1])
    check(smallest >= 3, f"frames must be at least 3 x 3 for SSIM, got {list(clips.shape[-3:-1])}")
    window = min(_UNIFORM_WINDOW, smallest - (smallest + 1) % 2)
    frames = zip(clips.reshape(-1, *clips.shape[-3:]), clean.reshape(-1, *clean.shape[-3:]), strict=True)
    values = [
        structural_similarity(frame, clean_frame, win_size=window, data_range=_CLIP_RANGE, channel_axis=-1)
        for frame, clean_frame in frames
    ]
    return np.asarray(values).reshape(len(clips), -1).mean(axis=1)


def _checked_clips(clips: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    clips, clean = np.asarray(clips, np.float64), np.asarray(clean, np.float64)
    check(
        clips.shape == clean.shape and clips.ndim in (4, 5) and 0 not in clips.shape,
        "clips must be two arrays [n, (T,) H, W, C] of one shape, all above 0, "
        f"got {list(clips.shape)} and {list(clean.shape)}",
    )
    bad = int(np.count_nonzero(~np.isfinite(clips)) + np.count_nonzero(~np.isfinite(clean)))
    check(bad == 0, f"clips must be finite, got {bad} values that are not")
    return clips, clean


def frame_psnr(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of every frame in dB, float64 [T]: 10 log10(255^2 / mean square error).

    Args:
      frames, reference: uint8 [T, H, W, C], or floating point on the same scale of 0..255. A grey clip may be compared
        with an RGB one.

    Returns:
      float64 [T]; infinite where the frames are equal.

    Raises:
      ValueError: shapes that differ, or values that are not finite.
    """
    return psnr(*(clip * (2.0 / _FRAME_RANGE) for clip in _checked_frames(frames, reference)))


def frame_ssim(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity of every frame, float64 [T], at most 1; channels are averaged.

    Args and errors are those of `frame_psnr`; frames must be at least 11 x 11.
    """
    from skimage.metrics import structural_similarity

    frames, reference = _checked_frames(frames, reference)
    check(
        min(frames.shape[1:3]) >= WINDOW,
        f"frames must be at least {WINDOW} x {WINDOW} for SSIM, got {frames.shape[1]} x {frames.shape[2]}",
    )
    values = [
        structural_similarity(
            frame,
            reference_frame,
            gaussian_weights=True,
            sigma=SIGMA,
            use_sample_covariance=False,
            data_range=_FRAME_RANGE,
            channel_axis=-1,
        )
        for frame, reference_frame in zip(frames, reference, strict=True)
    ]
    return np.asarray(values, np.float64)


def _checked_frames(frames: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frames, reference = np.asarray(frames, np.float64), np.asarray(reference, np.float64)
    if frames.ndim == reference.ndim == 4 and frames.shape[:3] == reference.shape[:3]:
        channels = {frames.shape[3], reference.shape[3]}
        if channels == {1, 3}:  # one grey clip, one RGB clip
            frames, reference = (np.broadcast_to(clip, (*clip.shape[:3], 3)) for clip in (frames, reference))
    check(
        frames.shape == reference.shape and frames.ndim == 4 and frames.size > 0,
        "clips must be two arrays [T, H, W, C] of one shape, all above 0, "
        f"got {list(frames.shape)} and {list(reference.shape)}",
    )
    for name, values in (("found", frames), ("reference", reference)):
        check(bool(np.isfinite(values).all()), f"{name} must be finite")
    return frames, reference
