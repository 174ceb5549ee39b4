"""Where examples come from, and how images are cropped, flipped and captioned."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.choices import Background, CaptionLines, Split, choices
from starflow_jax.core.config.checks import (
    check,
    check_addresses,
    check_choice,
    check_choices,
    check_integer,
    check_paths,
    check_real,
)
from starflow_jax.core.registries import SOURCES

OptionValue = str | int | float | bool
# What an example of an image file consists of, by the names that `SourceConfig.features` maps.
FEATURES = ("image", "label", "caption")


@dataclasses.dataclass(frozen=True)
class SourceTraits:
    """What the configuration must know about a source: the keyword arguments of `SOURCES.register`, all literals.

    Attributes:
      path: the source reads files, so that `path` is required; it is refused for any other source.
      frames: the source yields clips ("always", so that `frames` is required), images ("never"), or either.
      decoded: the source decodes and resizes image or video files, so that `crop`, `flip`, `aspect_ratios` and `index`
        apply.
      fields: further fields of the configuration that this source reads, such as "dataset" or "drop_first".
      captions: whether examples have captions: "none", "text" (read with `data.text_encoder` or `text.vocabulary`), or
        "words" of a vocabulary that the source defines.
      options: the names that `options` may hold.
      levels: the number of levels of a pixel in runs that do not record it (`SourceConfig.levels`).
      latents: the examples are latents that were encoded before, with their autoencoder stored beside them.
      vectors: the examples are vectors of numbers instead of pictures; `noise` "none" is then allowed.
      mixture: the examples are those of the sources in `DataConfig.mixture`.
      addresses: the source reads the address of a store by itself; for other sources it is copied to the local disk.
      feature_network: the network that measures samples of this source where none is named; None for none.
    """

    path: bool = False
    frames: Literal["never", "always", "either"] = "never"
    decoded: bool = False
    fields: tuple[str, ...] = ()
    captions: Literal["none", "text", "words"] = "none"
    options: tuple[str, ...] = ()
    levels: int = 256
    latents: bool = False
    vectors: bool = False
    mixture: bool = False
    addresses: bool = False
    feature_network: str | None = None


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """Which caption of an example is chosen, and which templates are applied to it (`models.text.templates`).

    Attributes:
      kinds: (kind, weight) pairs: the kind of caption is sampled with these weights among those that an example has.
        Empty for equal weights. Texts without a kind are of kind "caption".
      lines: whether a text file is "one" caption, or its lines are "alternatives"; None for "one". Recorded by
        training.
      key: the key of JSON files, or the column of tables, that contains captions; None for the first of `captions`,
        `caption`, `text` and `prompt` that has one.
      fps, noise_level, aspect, chat: whether each of these templates is applied.
    """

    kinds: tuple[tuple[str, float], ...] = ()
    lines: CaptionLines | None = None
    key: str | None = None
    fps: bool = False
    noise_level: bool = False
    aspect: bool = False
    chat: bool = False

    def __post_init__(self) -> None:
        if self.lines is not None:
            check_choice("lines", self.lines, choices(CaptionLines))
        check(self.key != "", "key must be None or the name of a key or column, got ''")
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
      source: a name of the registry `SOURCES`. Built in are "digits" (scikit-learn's 8x8 digits); "photos" (crops of
        ten photographs that ship with scikit-image and scikit-learn); "moving_digits" (clips of moving digits, with
        captions); "vectors" (numbers in .npz, .npy or .csv files: a folder with one for each split, or one file);
        "two_moons" (points of the plane); "npz" (a folder with train.npz and test.npz, or one file, containing `image`
        uint8 [n, H, W, C] and `label` integer [n]); "idx" (a folder with the files of MNIST); "images" (a folder of
        images: its folders are the classes, captions lie beside the images); "videos" (a folder of videos, likewise);
        "parquet" (shards with a column of images and one of captions, read by pyarrow); "tars" (tar shards in the
        WebDataset layout); "tfds" (a data set that TensorFlow Datasets prepared); "prepared" (written by `starflow
        prepare`); "latents" (written by `starflow encode`); "mixture" (several sources, see DataConfig).
      path: the folder (for "tars" and "parquet" also a file or a pattern, for "npz" also a file). Where it contains a
        folder named after the split (train; test, val, validation or valid; in any case), that folder is read.
      dataset: name of a "tfds" data set inside `path`; None where `path` is the folder of one version of it.
      features: (name, feature) pairs for a "tfds" data set whose features have other names than `image`, `label` and
        `caption`: (("image", "picture"), ("caption", "captions/text")).
      splits: (split, stored split) pairs for "tfds" and "prepared", where what is read as "train" and "test" is stored
        under other names; of "tfds" also parts: (("train", "train[:90%]"), ("test", "train[90%:]")).
      frames: frames of a clip, 0 for still images; fps: sampling rate of videos, 0 takes every frame.
      aspect_ratios: buckets with about the area of flow.image_size, as "width:height"; every example goes to the
        nearest one. Empty: one shape, flow.image_size.
      multiple: the sides of buckets are multiples of it; None for flow.patch_size.
      crop: "centre" or "random" (anywhere along the side that is too long); flip: probability of mirroring.
      background: the colour that transparent pixels of images and videos are composed onto.
      drop_first: probability that a clip begins at its second frame, its caption marked "(extend)".
      captions: which captions are chosen, and which templates are applied.
      index: a file that caches the sizes of images and videos, so that their headers are read only once.
      clips, test_clips: number of clips in each split of moving digits.
      digits: digits in a clip, 1 or 2; speed: pixels that they move from frame to frame.
      extend, inverted: shares of the clips that begin at a later moment, and of those whose second half inverts the
        first (`data.sources.moving_digits`).
      options: (name, value) pairs for a source that is registered elsewhere and needs more than the fields above.
      levels: number of levels of a pixel, 0 for continuous values. None for what the source states; arrays of fewer
        than 256 levels ("npz", "idx") must state it here or in the file. Recorded by training.
      class_names: names of the classes in the order of their numbers. Recorded by training; leave it None.
    """

    source: str = "digits"
    path: str | None = None
    dataset: str | None = None
    features: tuple[tuple[str, str], ...] = ()
    splits: tuple[tuple[str, str], ...] = ()
    frames: int = 0
    fps: float = 0.0
    aspect_ratios: tuple[str, ...] = ()
    multiple: int | None = None
    crop: Literal["centre", "random"] = "centre"
    flip: float = 0.0
    background: Background = "white"
    drop_first: float = 0.0
    captions: CaptionConfig = dataclasses.field(default_factory=CaptionConfig)
    index: str | None = None
    clips: int = 20_000
    test_clips: int = 100
    digits: Literal[1, 2] = 1
    speed: int = 2
    extend: float = 0.0
    inverted: float = 0.0
    options: tuple[tuple[str, OptionValue], ...] = ()
    levels: int | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check_paths(self, "index")
        check_addresses(self, "path")
        self._check_values()
        if not self._is_foreign:
            SOURCES.check("source", self.source)
            self._check_traits(self.traits)

    @property
    def traits(self) -> SourceTraits:
        """The traits that the source declares."""
        if self._is_foreign:
            return SourceTraits(frames="either", captions="text")
        return SourceTraits(**SOURCES.details(self.source))

    @property
    def _is_foreign(self) -> bool:
        """Whether this belongs to a trained run whose source is not registered here. Such a run can be sampled."""
        return self.levels is not None and self.source not in SOURCES.names()

    @property
    def pixel_levels(self) -> int:
        """Number of levels of a pixel: as recorded, or as the source declares for runs of version 0.1."""
        return self.traits.levels if self.levels is None else self.levels

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The random choices made whenever an image is decoded, as "flip=0.5"."""
        crop = ("crop='random'",) if self.crop == "random" else ()
        return (*crop, f"flip={self.flip}") if self.flip else crop

    def _check_traits(self, traits: SourceTraits) -> None:
        """Checks the fields that only some sources read."""
        if traits.path != (self.path is not None):
            raise ValueError(
                f"path requires source {_having('path', True)}, got source={self.source!r} and path={self.path!r}"
            )
        if traits.frames != "either" and (traits.frames == "always") != (self.frames > 0):
            raise ValueError(
                f"frames must be above 0 for source {_having('frames', 'always', ' or ')} and 0 for still images, got "
                f"source={self.source!r} and frames={self.frames}"
            )
        for name in ("dataset", "features", "splits", "extend", "inverted", "drop_first"):
            if name not in traits.fields and getattr(self, name):
                raise ValueError(
                    f"{name} requires source {_reading(name)}, got source={self.source!r} and "
                    f"{name}={getattr(self, name)!r}"
                )
        check(not self.drop_first or self.frames > 0, f"drop_first requires clips, got frames={self.frames}")
        for name, default in (
            ("crop", "centre"),
            ("flip", 0.0),
            ("aspect_ratios", ()),
            ("index", None),
            ("background", "white"),
        ):
            # Sources of latents accept the options of their encoding, so that one experiment file serves both commands.
            if not traits.decoded and name not in traits.fields and getattr(self, name) != default:
                raise ValueError(
                    f"{name} requires source {_having('decoded', True)}, got source={self.source!r} and "
                    f"{name}={getattr(self, name)!r}"
                )
        for name, _ in self.options:
            check(
                name in traits.options,
                f"options of source {self.source!r} must be among {list(traits.options)}, got {name!r}",
            )

    def _check_values(self) -> None:
        check_integer("frames", self.frames, minimum=0)
        check_renaming("features", self.features, FEATURES)
        check_renaming("splits", self.splits, choices(Split))
        if self.levels is not None:
            check_integer("levels", self.levels, minimum=0)
        check_real("fps", self.fps, minimum=0.0)
        for name in ("clips", "test_clips", "speed"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("extend", "inverted"):
            check_real(name, getattr(self, name), minimum=0.0)
        for name in ("flip", "drop_first"):
            check_real(name, getattr(self, name), minimum=0.0)
            check(getattr(self, name) <= 1.0, f"{name} must be at most 1, got {getattr(self, name)}")
        if self.multiple is not None:
            check_integer("multiple", self.multiple, minimum=1)
        repeated = {ratio for ratio in self.aspect_ratios if self.aspect_ratios.count(ratio) > 1}
        check(not repeated, f"aspect_ratios must name every bucket once, got {', '.join(sorted(repeated))} again")
        for ratio in self.aspect_ratios:
            sides = ratio.split(":")
            check(
                len(sides) == 2 and all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides),
                f"aspect_ratios must be 'width:height' with integers above 0, got {ratio!r}",
            )


@dataclasses.dataclass(frozen=True)
class ComponentConfig(SourceConfig):
    """One source of a mixture.

    Attributes:
      weight: share of the batches that come from it, relative to the other weights.
      batch_size: size of its batches; None for the batch size of the training stage.
    """

    weight: float = 1.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.traits.mixture, "mixture must be made of sources, not of mixtures")
        check_real("weight", self.weight, minimum=0.0)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, minimum=1)


def check_renaming(field: str, pairs: tuple[tuple[str, str], ...], allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `pairs` maps names among `allowed`, each once, to names that are not empty."""
    names = [name for name, _ in pairs]
    for name, value in pairs:
        check_choice(field, name, allowed)
        check(bool(value.strip()), f"{field} must give a name for {name!r}, got {value!r}")
    check(len(set(names)) == len(names), f"{field} must name each of {', '.join(allowed)} once, got {', '.join(names)}")


def _all_traits() -> dict[str, SourceTraits]:
    return {name: SourceTraits(**SOURCES.details(name)) for name in SOURCES.names()}


def _having(trait: str, value: object, join: str = ", ") -> str:
    """The names of the sources with this value of a trait, for messages."""
    return join.join(repr(name) for name, traits in _all_traits().items() if getattr(traits, trait) == value)


def _reading(field: str) -> str:
    """The names of the sources that read a field, for messages."""
    return " or ".join(repr(name) for name, traits in _all_traits().items() if field in traits.fields)
