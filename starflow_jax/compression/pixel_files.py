"""Reads the pixels of files, and writes decoded ones as PNG files or as one NumPy file.

Of still images and NumPy files no pixel is changed: others are refused. Of clips the decoded frames are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from starflow_jax.compression.image_codec import Decoder
from starflow_jax.core.atomic_writing import replacing, replacing_folder
from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import open_file
from starflow_jax.core.storage.local_moves import move
from starflow_jax.media import write_png
from starflow_jax.media.array_files import ARRAY_SUFFIXES, read_array
from starflow_jax.media.displayed_images import displayed, open_image
from starflow_jax.media.medium import IMAGES
from starflow_jax.media.reading import read_video

_KEYS = ("image", "images", "video", "videos")


def read_pixels(paths: Sequence[Path], channels: int, *, clips: bool) -> tuple[np.ndarray, list[str]]:
    """All images or clips of some files, in their order.

    Args:
      paths: files of images, or folders of them; for clips files of videos or animations, or folders of frames, each of
        which is one clip, as `read_video` decodes it: 8 bits a channel, with transparent pixels on white. Also .npy
        files, and .npz files with `image` or `video`: integers [n, H, W, C] or [n, T, H, W, C].
      channels: 1 (grey) or 3 (RGB); any number for NumPy files.
      clips: whether clips are read.

    Returns:
      Integers [n, H, W, C] or [n, T, H, W, C], and the names of the files; no names where a NumPy file is among them.

    Raises:
      ValueError: a file cannot be read, a still image would not come back as it is, or one differs in size from the
        others.
    """
    parts, names = [], []
    for path in paths:
        if path.suffix in ARRAY_SUFFIXES and path.is_file():
            parts.append(_array(path, clips))
            continue
        files = [path] if clips or not path.is_dir() else IMAGES.of_folder(path)
        check(len(files) > 0, f"{path} contains no images")
        for file in files:
            parts.append((_clip(file, channels) if clips else _image(file, channels))[None])
            names.append(file.name)
    shapes = {part.shape[1:] for part in parts}
    check(len(shapes) == 1, f"images must all have one size, got {' and '.join(sorted(map(str, shapes)))}")
    return np.concatenate(parts), names if len(names) == sum(map(len, parts)) else []


def _image(path: Path, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB"}.get(channels)
    check(mode is not None, f"images must be in a .npy or .npz file for {channels} channels, got {path}")
    try:
        with open_file(path) as file, open_image(file) as image:
            check(getattr(image, "n_frames", 1) == 1, "it is an animation, and the model is of still images")
            check(
                image.mode == mode and not image.has_transparency_data,
                f"its pixels are {image.mode}, and those of the model {mode} of 8 bits, without transparency",
            )
            pixels = np.asarray(displayed(image))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise ValueError(f"{path} cannot be compressed: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _clip(path: Path, channels: int) -> np.ndarray:
    frames = read_video(path).frames
    check(
        frames.shape[-1] == channels,
        f"{path} has {frames.shape[-1]} channels, and the model {channels}: convert it, or use an .npz file",
    )
    return frames


def _array(path: Path, clips: bool) -> np.ndarray:
    loaded, _ = read_array(path, _KEYS)
    words = "[n, T, H, W, C]" if clips else "[n, H, W, C]"
    fits = loaded.dtype.kind in "iu" and loaded.ndim == (5 if clips else 4) and loaded.size > 0
    check(fits, f"{path} must contain integers {words}, got {loaded.dtype} {list(loaded.shape)}")
    return loaded


def write_decoded(decoder: Decoder, out: Path) -> int:
    """Decodes all of a file, and writes it when its last image has been checked.

    Args:
      out: NAME.npz, which receives `image` uint8 [n, H, W, C] or [n, T, H, W, C], `levels` and, where the file has
        classes, `label`; or a folder, which receives a PNG file for each image, or a folder of frames for each clip.
        Frames are written as they are decoded, into a folder that gets its name at the end.

    Returns:
      The number of images or clips.

    Raises:
      ValueError: see `Decoder`; images of 2 or more than 4 channels for a folder.
    """
    header = decoder.header
    if out.suffix == ".npz":
        arrays = {"image": decoder.all(), "levels": np.asarray(header.levels)}
        if decoder.labels is not None:
            arrays["label"] = decoder.labels
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        return header.count
    check(header.channels in (1, 3, 4), f"out must end in .npz for images of {header.channels} channels, got {out}")
    width = len(str(header.count - 1))
    with replacing_folder(out) as folder:
        # Names are known at the end. Those with a dot are no name that an image can have.
        for first, frame, images in decoder.parts():
            for index, image in enumerate(images, first):
                name = f".{index:0{width}d}"
                write_png(folder / (f"{name}/{frame:04d}.png" if header.frames else f"{name}.png"), image)
        stems = _stems(decoder.names) or [f"{index:0{width}d}" for index in range(header.count)]
        for path, stem in zip(sorted(folder.iterdir()), stems, strict=True):
            move(path, folder / (stem if header.frames else f"{stem}.png"))
    return header.count


def _stems(names: Iterable[str]) -> list[str]:
    """The names without suffixes; none where one is no plain name or two are equal: they come from the file."""
    stems = [Path(name).stem for name in names]
    plain = all(stem and stem == Path(stem).name and stem[0] != "." and "\0" not in stem for stem in stems)
    plain = plain and len({stem.casefold() for stem in stems}) == len(stems) and max(map(len, stems), default=0) < 200
    return stems if plain else []
