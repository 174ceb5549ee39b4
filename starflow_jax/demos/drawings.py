"""The samples of the video demo: from captions, from a first frame, from another video, and longer than trained.

Each is shown beside real clips, before and after the training noise is removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config import ExperimentConfig
from starflow_jax.data import MovingDigits
from starflow_jax.data.sources.moving_digits import CAPTIONS
from starflow_jax.evaluation.video.caption_recognition import caption_agreement, ink_centroid, ink_levels, read_digits
from starflow_jax.flows.parameters import Params
from starflow_jax.media import video_grid, write_gif, write_mp4
from starflow_jax.models.text.templates import EXTEND, TRANSLATE, prefixed
from starflow_jax.sampling.videos.video_sampling import Videos, generate

FPS = 4.0
LONGER = 3  # times the trained number of frames
SHOWN = 10  # clips of each kind in a grid
_SCALE = 4
_GAP = 4  # pixels between real clips, noisy and denoised samples


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """Samples of one kind.

    Attributes:
      name: of its files.
      real: uint8 [m, T, H, W, C] 0..255, shown beside the samples; rows: indices of the m samples shown.
      drawn: the generated samples, noisy and denoised.
      figures: measurements as plain values.
    """

    name: str
    real: np.ndarray
    rows: Sequence[int]
    drawn: Videos
    figures: dict[str, Any]


def draw_all(
    params: Params, config: ExperimentConfig, source: MovingDigits, key: jax.Array, *, repeats: int = 1
) -> list[Drawing]:
    """Samples of all four kinds.

    Args:
      params: of the trained flow; config: its experiment.
      source: held-out plain clips, at least `SHOWN` of them.
      key: of the noise.
      repeats: number of samples per caption for the measurement.
    """
    kinds = (_from_captions, _from_first_frame, _from_video, _longer)
    keys = jax.random.split(key, len(kinds))
    return [kind(params, config, source, k, repeats) for kind, k in zip(kinds, keys, strict=True)]


def _bytes(clips: np.ndarray, levels: int) -> np.ndarray:
    return np.rint(clips * (255.0 / (levels - 1))).astype(np.uint8)


def _clips(source: MovingDigits, count: int) -> tuple[np.ndarray, list[str]]:
    """The first clips, uint8 [count, T, H, W, C] 0..255, and their captions."""
    clips = np.stack([source[index]["image"] for index in range(count)])
    return _bytes(clips, source.levels), [source.caption(index) for index in range(count)]


def _figures(videos: Videos) -> dict[str, Any]:
    report = videos.report
    return {
        "videos": report.images,
        "seconds": report.seconds,
        "compile_seconds": report.compile_seconds,
        "evaluations": report.evaluations,
        "converged": report.converged,
    }


def _signed(pixels: np.ndarray) -> np.ndarray:
    """uint8 0..255 as float in [-1, 1]."""
    return pixels / 127.5 - 1.0


def _from_captions(
    params: Params, config: ExperimentConfig, source: MovingDigits, key: jax.Array, repeats: int
) -> Drawing:
    captions = list(CAPTIONS) * repeats
    samples = generate(params, config, key, captions, batch_size=len(captions) // repeats)
    real, real_captions = _clips(source, min(SHOWN, len(source)))
    agreement = caption_agreement(samples.denoised, captions)
    noisy = caption_agreement(samples.x, captions)
    # The same measure on real clips is the score of a perfect model.
    all_clips, their_captions = _clips(source, len(source))
    reference = caption_agreement(_signed(all_clips), their_captions)
    figures = {
        "agreement": agreement.to_dict(),
        "agreement_noisy": noisy.to_dict(),
        "agreement_real": reference.to_dict(),
    }
    columns = [captions.index(caption) for caption in real_captions]
    return Drawing("captions", real, columns, samples, figures | _figures(samples))


def _from_first_frame(
    params: Params, config: ExperimentConfig, source: MovingDigits, key: jax.Array, repeats: int
) -> Drawing:
    real, captions = _clips(source, min(SHOWN, len(source)))
    samples = generate(params, config, key, captions, prefix=real[:, :1])
    new = samples.denoised[:, 1:]
    # The digit recognised in the given frame should be recognised in the new frames.
    read = read_digits(_signed(real[:, 0]))
    digit_kept = float((read_digits(new) == read[:, None]).mean())
    # Directions are measured from the given frame on, digits in the new frames only.
    agreement = caption_agreement(new, captions).to_dict()
    agreement["direction_share"] = caption_agreement(samples.denoised, captions).direction_share
    figures = {"agreement": agreement, "digit_kept": digit_kept}
    return Drawing("first_frame", real, range(len(real)), samples, figures | _figures(samples))


def _from_video(
    params: Params, config: ExperimentConfig, source: MovingDigits, key: jax.Array, repeats: int
) -> Drawing:
    """The first half of the frames is given; the second half should be its inversion."""
    half = config.data.frames // 2
    given, _ = _clips(source, min(SHOWN, len(source)))
    given = given[:, :half]
    truth = np.concatenate([given, 255 - given], axis=1)
    captions = [f"{TRANSLATE} inverted"] * len(given)
    samples = generate(params, config, key, captions, prefix=given)
    error = samples.denoised[:, half:] - _signed(truth[:, half:])
    figures = {"psnr": float(10 * np.log10(4.0 / np.mean(np.clip(error, -2, 2) ** 2)))}
    return Drawing("video_to_video", truth, range(len(truth)), samples, figures | _figures(samples))


def _longer(params: Params, config: ExperimentConfig, source: MovingDigits, key: jax.Array, repeats: int) -> Drawing:
    """Held-out clips continued to three times the trained length, beside the true path of the digit."""
    frames = LONGER * config.data.frames
    longer = dataclasses.replace(source, frames=frames, straight_frames=source.straight)
    real, captions = _clips(longer, min(SHOWN, len(source)))
    num_given = max(1, 3 * config.data.frames // 4)
    captions = [prefixed(caption, EXTEND) for caption in captions]
    samples = generate(params, config, key, captions, prefix=real[:, :num_given], frames=frames)
    centres, true_centres = ink_centroid(ink_levels(samples.denoised)), ink_centroid(ink_levels(_signed(real)))
    distance = np.sqrt(np.sum((centres - true_centres) ** 2, axis=-1))
    read = read_digits(_signed(real[:, 0]))
    figures = {
        # Mean distance between the centres of the sampled and the true digit in pixels, frame by frame.
        "distance": [float(value) for value in np.nanmean(distance, axis=0)],
        "digit_kept": float((read_digits(samples.denoised[:, num_given:]) == read[:, None]).mean()),
        "given_frames": num_given,
    }
    return Drawing("longer", real, range(len(real)), samples, figures | _figures(samples))


def write_drawing(drawing: Drawing, folder: Path) -> list[str]:
    """Writes NAME.mp4 and NAME.gif: real clips, samples with the training noise and denoised samples, side by side.

    Returns:
      The names of the files.
    """
    noisy = np.rint((np.clip(drawing.drawn.x, -1, 1) + 1) * 127.5).astype(np.uint8)
    rows = list(drawing.rows)
    panels = [drawing.real, noisy[rows], drawing.drawn.videos[rows]]
    columns = 5 if len(rows) % 5 == 0 else None
    grids = [video_grid(panel, columns=columns) for panel in panels]
    gap = np.full((*grids[0].shape[:2], _GAP, grids[0].shape[-1]), 128, np.uint8)
    video = np.concatenate([grids[0], gap, grids[1], gap, grids[2]], axis=2)
    writers: dict[str, Callable[..., None]] = {".mp4": write_mp4, ".gif": write_gif}
    for suffix, write in writers.items():
        write(folder / f"{drawing.name}{suffix}", video, fps=FPS, scale=_SCALE)
    return [f"{drawing.name}{suffix}" for suffix in writers]
