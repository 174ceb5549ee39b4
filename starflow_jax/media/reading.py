"""Reads the frames of a video file, a folder of images or one image, as they are displayed.

The files are untrusted: only the formats of `file_kind` are decoded, sizes are checked before pixels are decompressed,
and errors of the decoders are reported in one sentence.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import open_file
from starflow_jax.media.displayed_frames import MAX_FRAME_PIXELS, first_video, frame_pixels
from starflow_jax.media.displayed_images import displayed, open_image
from starflow_jax.media.file_kind import kind_of
from starflow_jax.media.fitting import fit_frame
from starflow_jax.media.medium import IMAGES

MAX_FRAMES = 10_000
MAX_CLIP_BYTES = 2**30

# Formats whose further images are frames of an animation. The further images of others (JPEG, TIFF) are not.
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
# The errors of Pillow's decoders on damaged files.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    AttributeError, AssertionError, RuntimeError, ArithmeticError, Image.DecompressionBombError,
)  # fmt: skip


class Clip(NamedTuple):
    """The frames of a video.

    Attributes:
      frames: uint8 [T, H, W, C], C of 1 (grey) or 3 (RGB).
      fps: frames per second, None where the file does not state it.
    """

    frames: np.ndarray
    fps: float | None


def read_video(
    path: Path | str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    max_frames: int = MAX_FRAMES,
    background: Background = "white",
) -> Clip:
    """Reads a video (mp4, mov, webm, mkv, avi), an animation (gif, webp, png, avif), a folder of images, or one image.

    Frames are as they are displayed: rotated as the file says, with square pixels, without transparency. A file is
    recognised by its content. The frames of a video are assumed to be evenly spaced; a frame of a GIF whose duration is
    k times the shortest is repeated k times. The images of a folder, its PNGs if it contains any, are sorted by the
    numbers in their names.

    Args:
      path: the file or folder.
      size, channels: frames are fitted to (rows, columns) and 1 or 3 channels while they are read (`fit_frame`), so
        that large videos take little memory. Both or neither; without them, all frames must have the same size.
      max_frames: maximum number of frames.
      background: the colour that transparent pixels are composed onto.

    Raises:
      ValueError: the path does not exist, or it cannot be read or is too large.
    """
    path = Path(path)
    check((size is None) == (channels is None), "size and channels must be given together")
    source = _Source(background)
    try:
        frames = _collect(source.frames_of(path), size, channels, max_frames)
    except _PILLOW_ERRORS as error:
        raise ValueError(f"video {path} cannot be read: {_reason(error)}") from error
    return Clip(frames, source.fps)


class _Source:
    """The frames of one path, and the frame rate found while reading them."""

    def __init__(self, background: Background) -> None:
        self.fps: float | None = None
        self._background = background

    def frames_of(self, path: Path) -> Iterator[np.ndarray]:
        """Yields frames uint8 [H, W, C]; raises errors that `read_video` turns into one sentence."""
        if path.is_dir():
            for file in _images_in(path):
                with open_file(file) as stream:
                    yield from self._images(stream, animated=False)
            return
        check(path.exists(), "no such file or folder")
        with open_file(path) as stream:
            kind = kind_of(stream)
            if kind is None:
                raise ValueError("it is not a video or an image, or of an unsupported format")
            yield from self._container(stream, kind.format) if kind.video else self._images(stream, animated=True)

    def _container(self, file: IO[bytes], container_format: str) -> Iterator[np.ndarray]:
        import av  # imported here because its libraries are slow to load

        try:
            # An open file instead of its name, because FFmpeg interprets some names as protocols.
            with av.open(file, "r", format=container_format) as container:
                stream = first_video(container)
                if stream.average_rate:
                    self.fps = float(stream.average_rate)
                for frame in container.decode(stream):
                    yield frame_pixels(frame, stream, self._background)
        except av.error.FFmpegError as error:
            raise ValueError(error.strerror or type(error).__name__) from error

    def _images(self, stream: IO[bytes], *, animated: bool) -> Iterator[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of sizes, which are checked, and of damage, which is an error
            with open_image(stream, most_pixels=MAX_FRAME_PIXELS) as image:
                if not (animated and image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1):
                    yield self._pixels(image)
                    return
                frames, durations = [], []
                for frame in ImageSequence.Iterator(image):
                    frames.append(self._pixels(frame))
                    # A WebP frame has its duration only after decoding.
                    durations.append(float(frame.info.get("duration", 0) or 0))
                    check(
                        len(frames) <= MAX_FRAMES and len(frames) * frames[0].nbytes <= MAX_CLIP_BYTES,
                        "its frames are too many or too large",
                    )
        counts = _repeats(durations)
        if sum(durations) > 0:
            self.fps = 1000.0 * sum(counts) / sum(durations)
        for pixels, count in zip(frames, counts, strict=True):
            for _ in range(count):
                yield pixels

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """An image as uint8 [H, W, 1 or 3]."""
        pixels = np.asarray(displayed(image, background=self._background))
        return pixels[..., None] if pixels.ndim == 2 else pixels


def _images_in(folder: Path) -> list[Path]:
    """The PNGs of a folder, or without any its other images, sorted by value, so that 10.png follows 9.png."""
    files = IMAGES.of_folder(folder)
    files = [path for path in files if path.suffix.lower() == ".png"] or files
    check(len(files) > 0, "the folder contains no images")
    return sorted(files, key=_natural)


def _collect(
    frames: Iterator[np.ndarray], size: tuple[int, int] | None, channels: int | None, max_frames: int
) -> np.ndarray:
    """Stacks frames to one array, with limits on their number and size."""
    collected: list[np.ndarray] = []
    total = 0
    for frame in frames:
        if size is not None and channels is not None:
            frame = fit_frame(frame, size, channels)
        check(
            not collected or frame.shape[:2] == collected[0].shape[:2],
            "its frames must have one size, got "
            f"{' and '.join(f'{f.shape[0]} x {f.shape[1]}' for f in (*collected[:1], frame))}",
        )
        collected.append(frame)
        total += frame.nbytes
        check(len(collected) <= max_frames, f"it must contain at most {max_frames} frames, got more")
        check(total <= MAX_CLIP_BYTES, f"its frames must take at most {MAX_CLIP_BYTES} bytes, got more")
    check(len(collected) > 0, "it contains no frames")
    widest = max(frame.shape[2] for frame in collected)
    return np.stack([np.broadcast_to(frame, (*frame.shape[:2], widest)) for frame in collected])


def _repeats(durations: list[float]) -> list[int]:
    """The repetitions of each frame: its duration divided by the shortest if all are multiples of it, else 1.

    GIF writers merge equal consecutive frames.
    """
    shortest = min(durations)
    if shortest <= 0:
        return [1] * len(durations)
    counts = [round(duration / shortest) for duration in durations]
    fits = all(abs(c * shortest - d) < 1e-6 for c, d in zip(counts, durations, strict=True))
    return counts if fits and sum(counts) <= MAX_FRAMES else [1] * len(durations)


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """A sort key of names by the numbers in them."""
    parts = re.findall(r"\d+|\D+", path.stem)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], path.name


def _reason(error: Exception) -> str:
    """The cause in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).removesuffix(".") or type(error).__name__
