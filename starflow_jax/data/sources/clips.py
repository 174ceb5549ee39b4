"""Clips out of a folder of videos, sampled at a rate from a random place: a source of one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from starflow_jax.data.decoding.bad_examples import BadExample, reason_of
from starflow_jax.data.decoding.image_files import Cut, fit
from starflow_jax.data.pipeline.draw import CAPTION
from starflow_jax.data.pipeline.fingerprint import digest_of
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.folders import Folder
from starflow_jax.media.clip_reading import VideoFacts, frames_at, video_facts


@dataclass(frozen=True, eq=False)
class ClipSource:
    """`image` uint8 [T, H, W, C], `label` int32 [] (-1: none), and with a captioner `text` int32 [L].

    Attributes:
      folder: the videos; places: which of them; facts: rows, columns, fps and seconds of each of those, [n, 4].
      frames: T; fps: at which they are sampled, 0 for every frame of the video.
      size: rows and columns; channels: 1 or 3; bucket: "width:height", what the shape is called.
      random_crop, flip: whether a drawn clip is cropped anywhere; the probability that it is mirrored.
      drop_first: probability that a drawn clip begins at its second frame and says so. A video must then have one
        frame more than T.
      captioner: of an experiment that reads captions.
    """

    folder: Folder
    places: np.ndarray
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

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.folder.name} {self.bucket}"

    @property
    def levels(self) -> int:
        """Values of a pixel."""
        return 256

    @property
    def num_classes(self) -> int:
        """Classes of the folder."""
        return self.folder.num_classes

    def __len__(self) -> int:
        return len(self.places)

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and dtypes of an example."""
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "image": ((self.frames, *self.size, self.channels), np.dtype(np.uint8)),
            "label": ((), np.dtype(np.int32)),
        }
        if self.captioner is not None:
            found["text"] = ((self.captioner.encoder.length,), np.dtype(np.int32))
        return found

    def digest(self) -> str:
        """Of the names and sizes of the videos."""
        return digest_of(self.folder.identity(int(place)) for place in self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A clip as it is scored: from the middle of the video, cropped about the centre, its caption always one."""
        return self._example(index, np.random.default_rng(index), 0.5, 0.5, False, False)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip as it is trained on."""
        when, place, mirror, late = rng.random(4)
        place = float(place) if self.random_crop else 0.5
        return self._example(index, rng, float(when), place, bool(mirror < self.flip), bool(late < self.drop_first))

    def _example(
        self, index: int, rng: np.random.Generator, when: float, place: float, flip: bool, late: bool
    ) -> dict[str, Any]:
        """Raises BadExample."""
        if not 0 <= index < len(self):
            raise IndexError(f"example must be 0 to {len(self) - 1}, got {index}")
        where, facts = int(self.places[index]), VideoFacts(*self.facts[index].tolist())
        rate = self.fps or facts.fps
        # As many frames are read whether the first is dropped or the last, so that every clip has one shape.
        count = frames_needed(self.frames, self.drop_first)
        begin = when * max(latest_start(facts, count, self.fps), 0.0)
        if not self.fps:
            begin = round(begin * rate) / rate
        times = [begin + frame / rate for frame in range(count)]
        path = self.folder.path(where)
        captions = self.folder.captions(where) if self.captioner is not None else {}
        try:
            chosen = times[1:] if late else times[: self.frames]
            frames = frames_at(path, chosen, facts.fps)
            cut = Cut(self.size, self.channels, place, flip)
            image = np.stack([_cut(frame, cut) for frame in frames])
        except Exception as error:  # a damaged file makes a decoder raise anything
            raise BadExample(str(path), reason_of(error)) from error
        example = {"image": image, "label": np.int32(self.folder.label(where))}
        if self.captioner is None:
            return example
        caption = self.captioner.choose(captions, rng)
        prompt = self.captioner.prompt(caption, self.bucket, rate, extended=late)
        return {**example, "text": self.captioner.ids(prompt), CAPTION: prompt}


def frames_needed(frames: int, drop_first: float) -> int:
    """Frames that a video must have for clips of `frames`."""
    return frames + (drop_first > 0)


def latest_start(facts: VideoFacts, frames: int, fps: float) -> float:
    """The last second at which a clip may begin; below 0 in a video that is too short."""
    return facts.seconds - 1 / facts.fps - (frames - 1) / (fps or facts.fps)


def facts_of(folder: Folder, index: int) -> VideoFacts:
    """The facts of one video. Raises BadExample."""
    path = folder.path(index)
    try:
        return video_facts(path)
    except Exception as error:  # a damaged header makes the reader raise anything
        raise BadExample(str(path), reason_of(error)) from error


def _cut(frame: np.ndarray, cut: Cut) -> np.ndarray:
    picture = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    return fit(picture.convert("L" if cut.channels == 1 else "RGB"), cut)
