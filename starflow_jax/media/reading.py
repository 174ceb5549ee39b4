"""Frames of a video file, a folder of pictures or one picture.

The files are other people's: formats are named and not guessed, sizes are checked before pixels are unpacked, and
whatever the decoders say becomes one sentence.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from starflow_jax.core.config.checks import check
from starflow_jax.media.fitting import fit_frame

MAX_FRAMES = 10_000
MAX_FRAME_PIXELS = 2**25
MAX_CLIP_BYTES = 2**30

# What FFmpeg calls the containers. Some others (playlists, lists of parts) make it open further files.
CONTAINERS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska", ".avi": "avi"}
_PICTURES = {
    ".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP",
}  # fmt: skip
# All that Pillow's decoders were seen to raise on damaged files.
_PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError,
    AttributeError, Image.DecompressionBombError,
)  # fmt: skip


class Clip(NamedTuple):
    """What was read.

    Attributes:
      frames: uint8 [T, H, W, C], C of 1 (grey) or 3 (RGB).
      fps: frames per second, None where the file does not say.
    """

    frames: np.ndarray
    fps: float | None


def read_video(
    path: Path | str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    max_frames: int = MAX_FRAMES,
) -> Clip:
    """Reads a video (mp4, mov, webm, mkv, avi, gif, animated webp or png), a folder of PNGs, or one picture.

    Transparency is dropped. A video's frames are taken as evenly spaced; a frame of a GIF that is shown k times as
    long as its briefest one counts as k. The PNGs of a folder are taken in the order of the numbers in their names.

    Args:
      path: the file or folder; its suffix names the format.
      size, channels: frames are fitted to (rows, columns) and 1 or 3 channels as they are read (`fit_frame`), so that
        large videos need no memory. Given together, or not at all: frames must then be of one size.
      max_frames: most frames allowed.

    Raises:
      ValueError: nothing there, an unknown suffix, anything unreadable, or too large.
    """
    path = Path(path)
    check((size is None) == (channels is None), "size and channels must be given together")
    source = _Source()
    try:
        frames = _collect(source.frames_of(path), size, channels, max_frames)
    except _PILLOW_ERRORS as error:
        raise ValueError(f"video {path} cannot be read: {_reason(error)}") from error
    return Clip(frames, source.fps)


class _Source:
    """The frames of one path, and the rate that turned up while they were read."""

    def __init__(self) -> None:
        self.fps: float | None = None

    def frames_of(self, path: Path) -> Iterator[np.ndarray]:
        """uint8 [H, W, C], one after another; raises what `read_video` turns into a sentence."""
        suffix = path.suffix.lower()
        if path.is_dir():
            # Numbers by their value, so that 10.png follows 9.png.
            found = sorted((p for p in path.iterdir() if p.suffix.lower() == ".png"), key=_natural)
            check(len(found) > 0, "the folder holds no PNG files")
            for picture in found:
                yield from self._pictures(picture, animated=False)
        elif not path.is_file():
            raise ValueError("there is no such file or folder")
        elif suffix in CONTAINERS:
            yield from self._container(path, CONTAINERS[suffix])
        elif suffix in _PICTURES:
            yield from self._pictures(path, animated=True)
        else:
            known = ", ".join([*CONTAINERS, *_PICTURES])
            raise ValueError(f"its suffix must be one of {known}, or none for a folder of PNGs, got {suffix!r}")

    def _container(self, path: Path, container_format: str) -> Iterator[np.ndarray]:
        import av  # here and not above: its libraries take a moment to load

        try:
            # An open file and not its name: FFmpeg gives some names a meaning.
            with path.open("rb") as file, av.open(file, "r", format=container_format) as container:
                check(len(container.streams.video) > 0, "it holds no video")
                stream = container.streams.video[0]
                if stream.average_rate:
                    self.fps = float(stream.average_rate)
                for frame in container.decode(stream):
                    check_pixels(frame.height, frame.width)
                    yield frame.to_ndarray(format="rgb24")
        except av.error.FFmpegError as error:
            raise ValueError(error.strerror or type(error).__name__) from error

    def _pictures(self, path: Path, *, animated: bool) -> Iterator[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked, and damage, which is refused
            with Image.open(path, formats=[_PICTURES[path.suffix.lower()]]) as image:
                check_pixels(image.height, image.width)
                if not animated or getattr(image, "n_frames", 1) == 1:
                    yield _pixels(image)
                    return
                frames, durations = [], []
                for frame in ImageSequence.Iterator(image):
                    frames.append(_pixels(frame))
                    # Known of a WebP's frame only once it was unpacked.
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


def _collect(
    frames: Iterator[np.ndarray], size: tuple[int, int] | None, channels: int | None, max_frames: int
) -> np.ndarray:
    """Frames as one array, within bounds."""
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
        check(len(collected) <= max_frames, f"it must hold at most {max_frames} frames, got more")
        check(total <= MAX_CLIP_BYTES, f"its frames must take at most {MAX_CLIP_BYTES} bytes, got more")
    check(len(collected) > 0, "it holds no frames")
    widest = max(frame.shape[2] for frame in collected)
    return np.stack([np.broadcast_to(frame, (*frame.shape[:2], widest)) for frame in collected])


def check_pixels(height: int, width: int) -> None:
    """Raises ValueError for a frame that is empty or huge."""
    check(
        0 < height * width <= MAX_FRAME_PIXELS,
        f"a frame must have at most {MAX_FRAME_PIXELS} pixels, got {height} x {width}",
    )


def _pixels(image: Image.Image) -> np.ndarray:
    """A picture as uint8 [H, W, 1 or 3]."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        return (np.clip(np.asarray(image, np.int64), 0, 65535) // 257).astype(np.uint8)[..., None]
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _repeats(durations: list[float]) -> list[int]:
    """How often each frame counts: its duration over the smallest where all are multiples of that, else once.

    Writers of GIF merge a frame into an equal one before it.
    """
    briefest = min(durations)
    if briefest <= 0:
        return [1] * len(durations)
    counts = [round(duration / briefest) for duration in durations]
    fits = all(abs(c * briefest - d) < 1e-6 for c, d in zip(counts, durations, strict=True))
    return counts if fits and sum(counts) <= MAX_FRAMES else [1] * len(durations)


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """A key that sorts names by the numbers in them."""
    parts = re.findall(r"\d+|\D+", path.stem)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], path.name


def _reason(error: Exception) -> str:
    """Why, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).removesuffix(".") or type(error).__name__
