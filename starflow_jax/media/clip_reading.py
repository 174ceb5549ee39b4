"""Reads a few frames of a video by their times, without decoding all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import open_file
from starflow_jax.media.displayed_frames import check_frame, first_video, frame_pixels, frame_size
from starflow_jax.media.file_kind import kind_of
from starflow_jax.media.reading import read_video


class VideoFacts(NamedTuple):
    """A video as it is displayed: rows, columns, frames per second, and duration in seconds."""

    height: int
    width: int
    fps: float
    seconds: float


def video_facts(path: Path) -> VideoFacts:
    """Reads the header and the first frame of a video file, whose rotation is known only then.

    An animation, such as a GIF, is decoded as a whole.

    Raises:
      ValueError: not a video, frames that are too large, or a header without duration or frame rate.
      OSError: the file does not exist.
    """
    if not _is_container(path):
        clip = read_video(path)
        check(clip.fps is not None, "it is a still image")
        assert clip.fps is not None
        count, height, width = clip.frames.shape[:3]
        return VideoFacts(height, width, clip.fps, count / clip.fps)
    with _Opened(path) as (container, stream):
        check_frame(stream.height, stream.width)
        fps = float(stream.average_rate or 0)
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not seconds and container.duration:
            seconds = container.duration / 1e6
        check(0 < fps < 1e4 and 0 < seconds < 1e7, "its duration or frame rate is missing")
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("it contains no frames")
        return VideoFacts(*frame_size(first, stream), fps, seconds)


def frames_at(path: Path, times: Sequence[float], fps: float, *, background: Background = "white") -> list[np.ndarray]:
    """The frames at given times, as they are displayed.

    Args:
      path: a video file; times: increasing, in seconds after the first frame; fps: the frame rate of the video.
      background: the colour that transparent pixels are composed onto.

    Returns:
      For each time uint8 [H, W, 3] ([H, W, 1] for a grey GIF).

    Raises:
      ValueError: the file cannot be read, or the video ends before the last time.
      OSError: the file does not exist.
    """
    if not _is_container(path):
        frames = read_video(path, background=background).frames
        indices = [int(time * fps + 0.25) for time in times]
        check(indices[-1] < len(frames), f"it ends after {len(frames)} frames")
        return [frames[index] for index in indices]
    with _Opened(path) as (container, stream):
        begin = float((stream.start_time or 0) * (stream.time_base or Fraction(1)))
        margin = 0.25 / fps  # containers round times
        taken: list[np.ndarray] = []
        current: Any = None
        for frame in _from(container, stream, begin + times[0] + margin):
            while len(taken) < len(times) and current is not None and frame.time > begin + times[len(taken)] + margin:
                taken.append(_pixels(current, stream, background))
            if len(taken) == len(times):
                return taken
            current = frame
        # The last frame has the same duration as any other.
        while current is not None and len(taken) < len(times) and begin + times[len(taken)] < current.time + 1 / fps:
            taken.append(_pixels(current, stream, background))
        check(len(taken) == len(times), f"it ends before second {times[-1]:.3g}")
        return taken


def _is_container(path: Path) -> bool:
    """Whether a file is a container of videos, by its content."""
    with open_file(path) as file:
        kind = kind_of(file)
    if kind is None:
        raise ValueError("it is not a video, or of an unsupported format")
    return kind.video


class _Opened:
    """A container and its first video stream."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        import av  # imported here because its libraries are slow to load

        # An open file instead of its name, because FFmpeg interprets some names as protocols.
        self.file = open_file(self.path)
        try:
            kind = kind_of(self.file)
            if kind is None or not kind.video:
                raise ValueError("it is not a video, or of an unsupported format")
            self.container = av.open(self.file, "r", format=kind.format)
            stream = first_video(self.container)
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        stream.thread_type = "NONE"  # the loader uses threads itself
        return self.container, stream

    def __exit__(self, kind: Any = None, error: Any = None, *_: object) -> None:
        import av

        container = getattr(self, "container", None)
        if container is not None:
            container.close()
        self.file.close()
        if isinstance(error, av.error.FFmpegError):
            raise ValueError(error.strerror or type(error).__name__) from error


def _from(container: Any, stream: Any, time: float) -> Iterator[Any]:
    """Frames from the last key frame before `time`."""
    if time * (stream.average_rate or 1) > 2:
        container.seek(int(time / stream.time_base), stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is not None and first.time is not None and first.time <= time:
            yield _timed(first)
            yield from map(_timed, frames)
            return
        container.seek(int(stream.start_time or 0), stream=stream)
    yield from map(_timed, container.decode(stream))


def _timed(frame: Any) -> Any:
    check(frame.time is not None, "its frames have no time stamps")
    return frame


def _pixels(frame: Any, stream: Any, background: Background) -> np.ndarray:
    check(not frame.is_corrupt, "a frame is damaged")
    return frame_pixels(frame, stream, background)
