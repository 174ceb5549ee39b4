"""Where examples come from, and how they are cut, flipped and captioned."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real

SourceName = Literal[
    "digits", "photos", "moving_digits", "npz", "images", "videos", "tars", "tfds", "latents", "mixture"
]
# Which sources are files, and which of them are decoded into the size that a model takes.
IN_A_FOLDER = ("npz", "images", "videos", "tars", "tfds", "latents")
DECODED = ("images", "videos", "tars", "tfds")


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Which caption is chosen, and what it is wrapped in (`text.captions`).

    Attributes:
      kinds: (kind, weight) pairs: a caption's kind is drawn by these weights among those that an example has. Empty
        for all kinds alike. The lines of a `.txt` file are of kind "caption".
      fps, noise_level, aspect, chat: which templates wrap it.
    """

    kinds: tuple[tuple[str, float], ...] = ()
    fps: bool = False
    noise_level: bool = False
    aspect: bool = False
    chat: bool = False

    def __post_init__(self):
        for kind, weight in self.kinds:
            check_real(f"kinds weight of {kind!r}", weight, minimum=0.0)
        names = [kind for kind, _ in self.kinds]
        check(len(set(names)) == len(names), f"kinds must name every kind once, got {', '.join(names)}")
        check(
            not self.kinds or sum(weight for _, weight in self.kinds) > 0,
            f"kinds must have weights that sum to more than 0, got {self.kinds}",
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of examples.

    Attributes:
      source: "digits" (scikit-learn's 8x8 digits); "photos" (pieces of ten photographs that ship with scikit-image and
        scikit-learn); "moving_digits" (clips of them, with captions); "npz" (a folder with
        train.npz and test.npz, each holding `image` uint8 [n, H, W, C] and `label` integer [n]); "images" (a folder of
        pictures: classes are its folders, captions lie beside); "videos" (a folder of videos, likewise); "tars" (tar
        shards in WebDataset's layout); "tfds" (a data set that TensorFlow Datasets prepared as ArrayRecord); "latents"
        (what `starflow encode` wrote); "mixture" (of several, see DataConfig).
      path: the folder (or, of "tars", a file or a pattern). Where it holds a folder named after the split (train, test
        or val), that one is read.
      dataset: name of a "tfds" data set inside `path`; None where `path` is the folder of one version of it.
      frames: of a clip, 0 for still images; fps: at which videos are sampled, 0 takes every frame.
      aspect_ratios: buckets of about the area of flow.image_size, as "width:height"; every example goes to
        the one it fits best. Empty: one shape, flow.image_size.
      multiple: sides of buckets are multiples of it; None for flow.patch_size.
      crop: "centre" or "random" (anywhere along the side that is too long); flip: probability of mirroring.
      drop_first: probability that a clip begins at its second frame, its caption marked "(extend)".
      captions: which captions are chosen and how they are wrapped.
      index: a file that keeps the sizes of pictures and videos, so that they are looked for only once.
      clips, test_clips: how many clips each split of moving digits holds.
      digits: digits in a clip, 1 or 2; speed: pixels they move from frame to frame.
      extend, inverted: shares of clips that are seen from a later moment, and of those whose second half inverts the
        first (`data.moving_digits`).
    """

    source: SourceName = "digits"
    path: str | None = None
    dataset: str | None = None
    frames: int = 0
    fps: float = 0.0
    aspect_ratios: tuple[str, ...] = ()
    multiple: int | None = None
    crop: Literal["centre", "random"] = "centre"
    flip: float = 0.0
    drop_first: float = 0.0
    captions: CaptionConfig = dataclasses.field(default_factory=CaptionConfig)
    index: str | None = None
    clips: int = 20_000
    test_clips: int = 100
    digits: Literal[1, 2] = 1
    speed: int = 2
    extend: float = 0.0
    inverted: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check_integer("frames", self.frames, minimum=0)
        self._check_frames()
        for name in ("clips", "test_clips"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("speed", self.speed, minimum=1)
        for name in ("extend", "inverted"):
            check_real(name, getattr(self, name), minimum=0.0)
            check(
                self.source == "moving_digits" or not getattr(self, name),
                f"{name} belongs to source 'moving_digits', got source={self.source!r}, {name}={getattr(self, name)}",
            )
        check(
            (self.source in IN_A_FOLDER) == (self.path is not None),
            f"path goes with source {', '.join(map(repr, IN_A_FOLDER))}, got source={self.source!r} and "
            f"path={self.path!r}",
        )
        self._check_decoding()

    @property
    def at_random(self) -> tuple[str, ...]:
        """What is drawn anew whenever a picture is decoded, as "flip=0.5"."""
        crop = ("crop='random'",) if self.crop == "random" else ()
        return (*crop, f"flip={self.flip}") if self.flip else crop

    def _check_frames(self) -> None:
        needed = self.source in ("moving_digits", "videos")
        check(
            self.source in ("latents", "mixture") or needed == (self.frames > 0),
            f"frames must be above 0 for source 'moving_digits' or 'videos' and 0 for still images, got "
            f"source={self.source!r} and frames={self.frames}",
        )
        check_real("fps", self.fps, minimum=0.0)
        for name in ("flip", "drop_first"):
            check_real(name, getattr(self, name), minimum=0.0)
            check(getattr(self, name) <= 1.0, f"{name} must be at most 1, got {getattr(self, name)}")
        check(
            not self.drop_first or (self.source in ("videos", "latents") and self.frames > 0),
            f"drop_first goes with clips of source 'videos' or 'latents', got source={self.source!r}, "
            f"frames={self.frames}",
        )

    def _check_decoding(self) -> None:
        if self.multiple is not None:
            check_integer("multiple", self.multiple, minimum=1)
        check(
            self.source == "tfds" or self.dataset is None,
            f"dataset goes with source 'tfds', got source={self.source!r} and dataset={self.dataset!r}",
        )
        # Latents keep what decided their making, so that one experiment file serves `starflow encode` and training.
        for name in ("flip", "aspect_ratios", "index"):
            check(
                not getattr(self, name) or self.source in (*DECODED, "latents"),
                f"{name} goes with sources {', '.join(map(repr, DECODED))}, got source={self.source!r} and "
                f"{name}={getattr(self, name)!r}",
            )
        check(
            self.crop == "centre" or self.source in (*DECODED, "latents"),
            f"crop 'random' goes with sources {', '.join(map(repr, DECODED))}, got source={self.source!r}",
        )
        twice = {ratio for ratio in self.aspect_ratios if self.aspect_ratios.count(ratio) > 1}
        check(not twice, f"aspect_ratios must name every bucket once, got {', '.join(sorted(twice))} again")
        for ratio in self.aspect_ratios:
            sides = ratio.split(":")
            check(
                len(sides) == 2 and all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides),
                f"aspect_ratios must be 'width:height' in whole numbers above 0, got {ratio!r}",
            )


@dataclasses.dataclass(frozen=True)
class ComponentConfig(SourceConfig):
    """One source of a mixture.

    Attributes:
      weight: share of the batches that come from it, relative to the other weights.
      batch_size: of its batches; None for that of the stage of training.
    """

    weight: float = 1.0
    batch_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check(self.source != "mixture", "mixture must be made of sources, not of mixtures")
        check_real("weight", self.weight, minimum=0.0)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, minimum=1)
