"""Reads the images, clips and masks that are edited, in the units of a run's model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.editing.operators import Mask
from starflow_jax.media.array_files import ARRAY_SUFFIXES, read_array
from starflow_jax.media.medium import IMAGES
from starflow_jax.media.reading import read_video
from starflow_jax.sampling.loaded_run import Run

HALVES = ("left", "right", "top", "bottom")
MOST_FRAMES = 10_000
_KEYS = ("image", "images", "video", "videos", "y")
_MIDDLE = 127  # of the levels of a picture of a mask


def data_size(run: Run) -> tuple[int, ...]:
    """The shape of one image or clip of a run in pixels: (H, W, C), or (T, H, W, C) of as many frames as trained on."""
    config = run.config
    frame = (*config.flow.image_shape, config.flow.channels)
    size = (config.data.frames, *frame) if config.data.frames else frame
    return size if run.autoencoder is None else run.autoencoder.pixel_shape(size)


def read_examples(
    config: ExperimentConfig, paths: Sequence[Path], size: tuple[int, ...] | None, *, whole: bool
) -> np.ndarray:
    """Images or clips in [-1, 1], float32 [n, *size].

    Args:
      config: of the run.
      paths: files of images, or folders of them; for clips videos, animations or folders of frames; or .npy and .npz
        files (`image`, `video` or `y`) of integers, 0 to 255 or to `levels` - 1, or of numbers in [-1, 1].
      size: (H, W, C) or (T, H, W, C), to which pictures are cropped and resized, and which arrays must have; longer
        clips are cut. None for arrays of any shape alone.
      whole: whether these are pixels of the data, which take the levels that the model learned.

    Raises:
      ValueError: a file that cannot be read or does not fit.
    """
    parts = []
    for path in paths:
        if path.suffix in ARRAY_SUFFIXES and path.is_file():
            part = _array(path, config.data, whole)
            check(
                size is None or part.shape[1:] == size,
                f"{path} must contain [n, {', '.join(map(str, size or ()))}], got {list(part.shape)}",
            )
            parts.append(part)
            continue
        check(size is not None, f"{path} must be a .npy or .npz file of measurements")
        assert size is not None
        clips = len(size) == 4
        check(size[-1] in (1, 3), f"{path} must be a .npy or .npz file for {size[-1]} channels")
        files = [path] if clips or not path.is_dir() else IMAGES.of_folder(path)
        check(len(files) > 0, f"{path} contains no images")
        for file in files:
            frames = read_video(
                file, size=(size[-3], size[-2]), channels=size[-1], background=config.data.background
            ).frames
            if clips:
                check(len(frames) >= size[0], f"{file} must have {size[0]} frames or more, got {len(frames)}")
            pixels = frames[: size[0]] if clips else frames[0]
            parts.append(in_units(pixels[None], 256, config.data, whole=whole))
    shapes = {part.shape[1:] for part in parts}
    check(len(shapes) == 1, f"inputs must all have one shape, got {' and '.join(sorted(map(str, shapes)))}")
    return np.concatenate(parts)


def in_units(pixels: np.ndarray, levels: int, data: DataConfig, *, whole: bool) -> np.ndarray:
    """Pixels of some levels in [-1, 1], float32: of a model of dequantised data in the middles of its own levels."""
    share = pixels.astype(np.float32) / (levels - 1)
    if data.noise != "uniform":
        return share * 2.0 - 1.0
    own = data.pixel_levels
    level = share * (own - 1)
    level = np.rint(level) if whole else level
    return (level + 0.5) * np.float32(2.0 / own) - 1.0


def _array(path: Path, data: DataConfig, whole: bool) -> np.ndarray:
    loaded, stated = read_array(path, _KEYS)
    levels = 256 if stated is None else stated
    fits = loaded.dtype.kind in "iuf" and loaded.ndim > 1 and loaded.size > 0
    check(fits, f"{path} must contain numbers [n, ...], got {loaded.dtype} {list(loaded.shape)}")
    if loaded.dtype.kind == "f":
        check(bool(np.isfinite(loaded).all()), f"{path} must contain finite numbers, got others")
        found: np.ndarray = loaded.astype(np.float32)
        # Measurements have noise, and may leave the range; so may means of pixels with training noise.
        low, high = float(found.min()), float(found.max())
        check(
            not whole or (low >= -1.0 and high <= 1.0),
            f"{path} must contain numbers from -1 to 1 or integers, got numbers from {low:g} to {high:g}",
        )
        return found
    least, most = int(loaded.min()), int(loaded.max())
    check(
        levels >= 2 and least >= 0 and most < levels,
        f"{path} must contain integers from 0 to {levels - 1}, got {least if least < 0 else most}",
    )
    return in_units(loaded, levels, data, whole=whole)


def hidden_part(text: str, size: tuple[int, ...]) -> Mask:
    """The mask in which a named part is missing.

    Args:
      text: half:left, half:right, half:top or half:bottom; frames:A-B, the frames A to B of a clip, counted from 0;
        box:ROW,COLUMN,HEIGHT,WIDTH in pixels; or a file: a picture whose bright pixels are missing, or a .npy file of
        True where values are missing.
      size: of one image or clip.

    Raises:
      ValueError: a part that the data do not have, or a file that cannot be read; all or nothing would be missing.
    """
    kind, _, rest = text.partition(":")
    missing = np.zeros((*size[:-1], 1), bool)
    rows, columns = size[-3:-1]
    if kind == "half" and rest in HALVES:
        part = {
            "left": np.s_[..., : columns // 2, :],
            "right": np.s_[..., columns - columns // 2 :, :],
            "top": np.s_[..., : rows // 2, :, :],
            "bottom": np.s_[..., rows - rows // 2 :, :, :],
        }[rest]
        missing[part] = True
    elif kind == "frames" and (ends := re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", rest, re.ASCII)):
        first, last = int(ends[1]), int(ends[2] or ends[1])
        check(len(size) == 4, f"mask {text} needs a run on clips, got one on still images")
        check(first <= last < size[0], f"mask frames must be from 0 to {size[0] - 1}, in order, got {rest}")
        missing[first : last + 1] = True
    elif kind == "box" and (box := re.fullmatch(r"(\d{1,5}),(\d{1,5}),(\d{1,5}),(\d{1,5})", rest, re.ASCII)):
        top, left, height, width = map(int, box.groups())
        check(
            top + height <= rows and left + width <= columns,
            f"mask box must be inside of {rows} rows and {columns} columns, got {rest}",
        )
        missing[..., top : top + height, left : left + width, :] = True
    else:
        missing = _mask_file(Path(text), size)
    check(bool(missing.any()) and not bool(missing.all()), f"mask {text} must hide some of the data, and not all of it")
    return Mask(~missing)


def _mask_file(path: Path, size: tuple[int, ...]) -> np.ndarray:
    check(
        path.exists(),
        f"mask must be half:{'|'.join(HALVES)}, frames:A-B, box:ROW,COLUMN,HEIGHT,WIDTH or a file, got {str(path)!r}",
    )
    if path.suffix != ".npy":
        frames = read_video(path, size=(size[-3], size[-2]), channels=1).frames
        picture: np.ndarray = frames[: size[0]] if len(size) == 4 and len(frames) > 1 else frames[0]
        check(
            picture.ndim == 3 or len(picture) == size[0],
            f"mask {path} must have one frame or {size[0]}, got {len(frames)}",
        )
        return np.broadcast_to(picture > _MIDDLE, (*size[:-1], 1))
    loaded, _ = read_array(path)
    try:
        broad: np.ndarray = np.broadcast_to(np.asarray(loaded, bool), size)
    except ValueError as error:
        raise ValueError(f"mask {path} cannot be used: {error}") from error
    return broad
