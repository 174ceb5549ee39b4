"""Clips of a folder of videos, sampled at a frame rate from a random start: a source of one shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.decoding.image_decoding import Crop, resize_and_crop
from starflow_jax.data.sources.base import CAPTION, lines_digest
from starflow_jax.data.sources.caption_files import CaptionFormat
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.folders import Folder, open_folder
from starflow_jax.data.sources.mixture import Mixture, mixture_of_buckets
from starflow_jax.data.sources.size_index import by_bucket, scan_files
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.media.clip_reading import VideoFacts, frames_at, video_facts
from starflow_jax.media.medium import VIDEOS


@dataclass(frozen=True, eq=False)
class ClipSource:
    """`image` uint8 [T, H, W, C], `label` int32 [] (-1: none), and with a captioner `text` int32 [L].

    Attributes:
      folder: the videos; indices: which of them; facts: rows, columns, fps and seconds of each of those, [n, 4].
      frames: T; fps: sampling rate, 0 for every frame of the video.
      size: rows and columns; channels: 1 or 3; bucket: the aspect ratio "width:height" of `size`.
      random_crop, flip: whether `draw` crops at a random position; the probability that it mirrors.
      drop_first: probability that `draw` begins at the second frame and marks the caption. A video must then have
        T + 1 frames.
      captioner: chooses and encodes captions; None for an experiment that reads none.
      background: the colour that transparent pixels are composed onto.
    """

    folder: Folder
    indices: np.ndarray
    facts: np.ndarray
    frames: int
    fps: float
    size: tuple[int, int]
    channels: int
    bucket: str
    random_crop: bool = False
    flip: float = 0.0
    drop_first: float = 0.0
    captioner: Captioner | None = None
    background: Background = "white"

    @property
    def name(self) -> str:
        """Name in logs."""
        return f"{self.folder.name} {self.bucket}"

    @property
    def levels(self) -> int:
        """Number of levels of a pixel."""
        return 256

    @property
    def num_classes(self) -> int:
        """Number of classes of the folder."""
        return self.folder.num_classes

    def __len__(self) -> int:
        return len(self.indices)

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and dtypes of an example."""
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "image": ((self.frames, *self.size, self.channels), np.dtype(np.uint8)),
            "label": ((), np.dtype(np.int32)),
        }
        if self.captioner is not None:
            arrays["text"] = ((self.captioner.encoder.length,), np.dtype(np.int32))
        return arrays

    def digest(self) -> str:
        """Digest of the names and sizes of the videos."""
        return lines_digest(self.folder.identity(int(index)) for index in self.indices)

    def with_frames(self, frames: int) -> ClipSource:
        """The same source with clips of at most `frames` frames."""
        return dataclasses.replace(self, frames=min(frames, self.frames))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip for evaluation: from the middle of the video, centre crop, always the same caption."""
        return self._example(index, np.random.default_rng(index), 0.5, Crop(self.size, self.channels), False)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A randomly augmented training clip."""
        start, position, mirror, late = rng.random(4)
        crop = Crop(self.size, self.channels, float(position) if self.random_crop else 0.5, bool(mirror < self.flip))
        return self._example(index, rng, float(start), crop, bool(late < self.drop_first))

    def _example(
        self, index: int, rng: np.random.Generator, start: float, crop: Crop, extended: bool
    ) -> dict[str, Any]:
        """Raises BadExample. `start`: where the clip begins, 0 (start of the video) to 1 (the latest possible)."""
        if not 0 <= index < len(self):
            raise IndexError(f"example must be 0 to {len(self) - 1}, got {index}")
        file, facts = int(self.indices[index]), VideoFacts(*self.facts[index].tolist())
        rate = self.fps or facts.fps
        # One more frame is timed than a clip has, of which the first or the last is dropped: all clips have one shape.
        count = frames_needed(self.frames, self.drop_first)
        begin = start * max(latest_start(facts, count, self.fps), 0.0)
        if not self.fps:
            begin = round(begin * rate) / rate
        times = [begin + frame / rate for frame in range(count)]
        path = self.folder.path(file)
        captions = self.folder.captions(file).texts if self.captioner is not None else {}
        try:
            frames = frames_at(
                path, times[1:] if extended else times[: self.frames], facts.fps, background=self.background
            )
            image = np.stack([_resize_and_crop(frame, crop) for frame in frames])
        except Exception as error:  # decoders raise many kinds of errors on damaged files
            raise BadExample(str(path), error_reason(error)) from error
        example = {"image": image, "label": np.int32(self.folder.label(file))}
        if self.captioner is None:
            return example
        caption = self.captioner.choose(captions, rng)
        prompt = self.captioner.prompt(caption, self.bucket, rate, extended=extended)
        return {**example, "text": self.captioner.ids(prompt), CAPTION: prompt}


def frames_needed(frames: int, drop_first: float) -> int:
    """Number of frames that a video must have for clips of `frames` frames."""
    return frames + (drop_first > 0)


def latest_start(facts: VideoFacts, frames: int, fps: float) -> float:
    """The latest start of a clip in seconds; negative for a video that is too short."""
    return facts.seconds - 1 / facts.fps - (frames - 1) / (fps or facts.fps)


def header_facts(folder: Folder, index: int) -> VideoFacts:
    """Size, frame rate and duration of one video. Raises BadExample."""
    path = folder.path(index)
    try:
        return video_facts(path)
    except Exception as error:  # readers raise many kinds of errors on damaged headers
        raise BadExample(str(path), error_reason(error)) from error


@SOURCES.register("videos", path=True, frames="always", decoded=True, captions="text", fields=("drop_first",))
def open_clips(config: SourceConfig, request: SourceRequest) -> Mixture:
    """Clips of the videos of a folder, with one component for each aspect-ratio bucket.

    Raises:
      ValueError: no folder, or no video in it that can be used.
    """
    shapes, channels = request.image_shapes(config), request.channels(config)
    drop_first = config.drop_first if request.training else 0.0
    reading = CaptionFormat.from_config(config.captions)
    folder = open_folder(Path(config.path or ""), request.split, VIDEOS, reading)
    skipped = Skipped()
    index_file = request.index_file(config)
    facts = scan_files(len(folder), lambda i: header_facts(folder, i), folder.signature(), index_file, skipped)
    needed = frames_needed(config.frames, drop_first)
    for index, values in enumerate(facts):
        if values is not None:
            video = VideoFacts(int(values[0]), int(values[1]), *values[2:])
            # Durations in headers are rounded: half a frame is tolerated.
            if latest_start(video, needed, config.fps) < -0.5 / video.fps:
                facts[index] = None
                skipped.bad += 1
                reason = f"it lasts {video.seconds:.3g} s, too short for {needed} frames"
                skipped.reasons.setdefault(folder.key(index), reason)
    buckets = by_bucket(facts, tuple(shapes))
    check(len(buckets) > 0, f"data path {config.path} contains no usable video{skipped.first()}")
    sources = [
        ClipSource(
            folder,
            indices,
            np.asarray([facts[index] for index in indices], np.float64),
            config.frames,
            config.fps,
            shapes[bucket],
            channels,
            bucket,
            random_crop=request.training and config.crop == "random",
            flip=config.flip if request.training else 0.0,
            drop_first=drop_first,
            captioner=request.captioner(config, config.fps or None),
            background=config.background,
        )
        for bucket, indices in buckets.items()
    ]
    return mixture_of_buckets(folder.name, sources, skipped)


def _resize_and_crop(frame: np.ndarray, crop: Crop) -> np.ndarray:
    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    return resize_and_crop(image.convert("L" if crop.channels == 1 else "RGB"), crop)
