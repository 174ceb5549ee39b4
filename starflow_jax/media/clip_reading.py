"""A few frames out of a video, by their times, without unpacking the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.media.reading import CONTAINERS, check_pixels, read_video

CLIP_SUFFIXES = (*CONTAINERS, ".gif")


class VideoFacts(NamedTuple):
    """Of a video, from its header: rows, columns, frames per second, and for how long it is shown."""

    height: int
    width: int
    fps: float
    seconds: float


def video_facts(path: Path) -> VideoFacts:
    """The facts of a video file; a GIF is unpacked for them.

    Raises:
      ValueError: no video, huge frames, or a header that does not say how long or how fast.
      OSError: no file.
    """
    if path.suffix.lower() not in CONTAINERS:
        clip = read_video(path)
        check(clip.fps is not None, "it is a still picture")
        assert clip.fps is not None
        count, height, width = clip.frames.shape[:3]
        return VideoFacts(height, width, clip.fps, count / clip.fps)
    with _Opened(path) as (container, stream):
        check_pixels(stream.height, stream.width)
        fps = float(stream.average_rate or 0)
        seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if not seconds and container.duration:
            seconds = container.duration / 1e6
        check(0 < fps < 1e4 and 0 < seconds < 1e7, "it does not say how long it is or at how many frames per second")
        return VideoFacts(stream.height, stream.width, fps, seconds)


def frames_at(path: Path, times: Sequence[float], fps: float) -> list[np.ndarray]:
    """The frames that are shown at some times.

    Args:
      path: a video file; times: seconds after the first frame, increasing; fps: the video's own.

    Returns:
      For each time uint8 [H, W, 3] (of a GIF that is grey, [H, W, 1]).

    Raises:
      ValueError: anything unreadable, or a video that ends before the last time.
      OSError: no file.
    """
    if path.suffix.lower() not in CONTAINERS:
        frames = read_video(path).frames
        places = [int(time * fps + 0.25) for time in times]
        check(places[-1] < len(frames), f"it ends after {len(frames)} frames")
        return [frames[place] for place in places]
    with _Opened(path) as (container, stream):
        begin = float((stream.start_time or 0) * (stream.time_base or Fraction(1)))
        slack = 0.25 / fps  # containers round times
        found: list[np.ndarray] = []
        shown: Any = None
        for frame in _from(container, stream, begin + times[0] + slack):
            while len(found) < len(times) and shown is not None and frame.time > begin + times[len(found)] + slack:
                found.append(_pixels(shown))
            if len(found) == len(times):
                return found
            shown = frame
        # The last frame is shown for as long as any other.
        while shown is not None and len(found) < len(times) and begin + times[len(found)] < shown.time + 1 / fps:
            found.append(_pixels(shown))
        check(len(found) == len(times), f"it ends before second {times[-1]:.3g}")
        return found


class _Opened:
    """A container and its first video stream."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        import av  # here and not above: its libraries take a moment to load

        # An open file and not its name: FFmpeg gives some names a meaning.
        self.file = self.path.open("rb")
        try:
            self.container = av.open(self.file, "r", format=CONTAINERS[self.path.suffix.lower()])
            check(len(self.container.streams.video) > 0, "it holds no video")
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        stream = self.container.streams.video[0]
        stream.thread_type = "NONE"  # the loader has threads of its own
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
    """Frames from the last key frame before `time` on."""
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
    check(frame.time is not None, "its frames do not say when they are shown")
    return frame


def _pixels(frame: Any) -> np.ndarray:
    check(not frame.is_corrupt, "a frame is damaged")
    check_pixels(frame.height, frame.width)
    return frame.to_ndarray(format="rgb24")
