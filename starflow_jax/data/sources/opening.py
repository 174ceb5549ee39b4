"""From a configuration to a source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.experiment import TextConfig
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.core.config.source import ComponentConfig, SourceConfig
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.decoding.buckets import image_size
from starflow_jax.data.decoding.image_files import SUFFIXES, picture_size
from starflow_jax.data.sources.base import ArraySource, Source
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.clips import ClipSource, VideoFacts, facts_of, frames_needed, latest_start
from starflow_jax.data.sources.collection import Collection
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.folders import Folder, split_folder
from starflow_jax.data.sources.latents import open_latents
from starflow_jax.data.sources.mixture import Component, Mixture, components_of
from starflow_jax.data.sources.moving_digits import MovingDigits
from starflow_jax.data.sources.photos import photos
from starflow_jax.data.sources.pictures import PictureSource
from starflow_jax.data.sources.scan import by_bucket, scan
from starflow_jax.data.sources.tars import Tars
from starflow_jax.data.sources.tfds import TfdsRecords
from starflow_jax.media.clip_reading import CLIP_SUFFIXES
from starflow_jax.models.text import CaptionReader, WordEncoder, load_caption_reader


@dataclass(frozen=True)
class _Reader:
    """Who reads: what a source has to know of the experiment besides its own configuration."""

    split: Split
    flow: FlowConfig | None
    text: TextConfig | None
    noise_std: float
    label_drop: float
    captions: CaptionReader | None

    def captioner(self, config: SourceConfig) -> Captioner | None:
        """Of an experiment that reads captions."""
        if self.captions is None:
            return None
        fps = (config.fps or None) if config.source == "videos" else 0.0
        return Captioner(self.captions, config.captions, self.noise_std, fps)

    def channels(self, config: SourceConfig) -> int:
        """Of decoded pictures."""
        channels = 3 if self.flow is None else self.flow.channels
        check(channels in (1, 3), f"flow.channels must be 1 (grey) or 3 (RGB) to read {config.source}, got {channels}")
        return channels

    def shapes(self, config: SourceConfig) -> dict[str, tuple[int, int]]:
        """Rows and columns of each bucket, by name; without buckets, of the one shape."""
        if self.flow is None:
            raise ValueError(f"data.source {config.source!r} needs a flow, whose image_size says what is read")
        trained = self.flow.image_shape
        if not config.aspect_ratios:
            return {_ratio(*trained): trained}
        target = round(math.sqrt(math.prod(trained)))
        multiple = config.multiple or self.flow.patch_size
        return {ratio: image_size(target, ratio, multiple) for ratio in config.aspect_ratios}


def open_source(
    config: SourceConfig, split: Split, *, flow: FlowConfig | None = None, text: TextConfig | None = None
) -> Source:
    """The images or clips of one split.

    Moving digits take the size of the canvas and of captions from `flow`; digits are enlarged to a `flow.image_size`
    that is a multiple of their 8 pixels; pictures and videos are cut to `flow.image_size` or the buckets.

    Args:
      config: of the data (or of one source).
      flow: what reads them; text: its vocabulary. Without one, and without `text_encoder`, captions are left alone.

    Raises:
      ValueError: files that are missing or unreadable, hold other data than they should, or need a flow.
    """
    noise_std, label_drop = (config.noise_std, config.label_drop) if isinstance(config, DataConfig) else (0.0, 0.0)
    captions = _caption_reader(config, flow, text)
    reader = _Reader(split, flow, text, noise_std, label_drop if split == "train" else 0.0, captions)
    if isinstance(config, DataConfig) and config.source == "mixture":
        return _mixture(config, reader)
    return _one(config, reader)


def _caption_reader(config: SourceConfig, flow: FlowConfig | None, text: TextConfig | None) -> CaptionReader | None:
    """What makes ids of captions: the vocabulary, or the tokenizer of `data.text_encoder`."""
    if flow is None:
        return None
    if text is not None:
        return WordEncoder(text.vocabulary, flow.text_length)
    if not isinstance(config, DataConfig) or config.text_encoder is None:
        return None
    if all(part.source == "latents" for part in (config.mixture or (config,))):
        return None  # their captions were read before
    return load_caption_reader(Path(config.text_encoder), flow.text_length)


def _mixture(config: DataConfig, reader: _Reader) -> Mixture:
    """The sources of a mixture; one with buckets shares its weight out among them, by how many examples they have."""
    components = []
    skipped = Skipped()
    names = []
    for part in config.mixture:
        if part.weight == 0:
            continue
        source = _one(part, reader)
        names.append(part.source)
        parts = components_of(source)
        total = sum(component.weight for component in parts)
        components += [Component(one.source, part.weight * one.weight / total, part.batch_size) for one in parts]
        skipped.merge(getattr(source, "skipped", Skipped()))
    return Mixture(" + ".join(names), tuple(components), skipped)


def _one(config: SourceConfig | ComponentConfig, reader: _Reader) -> Source:
    flow = reader.flow
    if config.source == "digits":
        shape = (8, 8) if flow is None else flow.image_shape
        fits = shape[0] == shape[1] and shape[0] % 8 == 0
        return digits(reader.split, enlarge=shape[0] // 8 if fits else 1)  # `check_source` refuses what does not fit
    if config.source == "photos":
        check(flow is not None, "data.source 'photos' needs a flow, whose image_size says how large a piece is")
        assert flow is not None
        return photos(reader.split, flow.image_shape, reader.channels(config))
    if config.source == "moving_digits":
        return _moving_digits(config, reader)
    assert config.path is not None  # SourceConfig checks it
    path = Path(config.path)
    if config.source == "npz":
        return _arrays(path, reader.split)
    if config.source == "latents":
        folder = path / reader.split if (path / reader.split).is_dir() else path
        check(reader.split == "train" or folder != path, f"latents {path} must hold a folder {reader.split}")
        drop_first = config.drop_first if reader.split == "train" else 0.0
        return open_latents(folder, config.frames, drop_first, reader.label_drop)
    if config.source == "videos":
        return _clips(config, reader, path)
    collection: Collection
    if config.source == "images":
        collection = _folder(path, reader.split, SUFFIXES)
    elif config.source == "tars":
        collection = Tars.of(config.path, reader.split)
    else:
        collection = TfdsRecords.of(path, config.dataset, reader.split)
    return _pictures(config, reader, collection)


def _moving_digits(config: SourceConfig, reader: _Reader) -> MovingDigits:
    flow, training = reader.flow, reader.split == "train"
    if flow is None or flow.image_shape[0] != flow.image_shape[1]:
        raise ValueError("data.source 'moving_digits' needs a flow of a square flow.image_size")
    return MovingDigits(
        reader.split,
        frames=config.frames,
        canvas=flow.image_shape[0],
        digits=config.digits,
        speed=config.speed,
        clips=config.clips if training else config.test_clips,
        words=flow.text_length,
        # Held-out clips are plain ones, so that what is scored does not depend on the mixture.
        extend=config.extend if training else 0.0,
        inverted=config.inverted if training else 0.0,
    )


def _arrays(folder: Path, split: Split) -> ArraySource:
    path = folder / f"{split}.npz"
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["image"], arrays["label"].astype(np.int32)
    except Exception as error:  # a damaged zip file raises anything
        raise ValueError(f"data file {path} cannot be read: {str(error).splitlines()[0]}") from error
    num_classes = int(labels.max(initial=0)) + 1
    return ArraySource(path.stem, images, labels, levels=256, num_classes=num_classes)


def _folder(path: Path, split: Split, suffixes: tuple[str, ...]) -> Folder:
    own = split_folder(path, split)
    if split == "train" or split_folder(path, "train") == path:
        return Folder.of(own, suffixes)
    # Classes have the numbers that the training split gives them.
    return Folder.of(own, suffixes, Folder.of(split_folder(path, "train"), suffixes).classes)


def _pictures(config: SourceConfig, reader: _Reader, collection: Collection) -> Source:
    shapes, channels = reader.shapes(config), reader.channels(config)
    training = reader.split == "train"

    def source(places: np.ndarray | None, bucket: str) -> PictureSource:
        return PictureSource(
            collection,
            places,
            shapes[bucket],
            channels,
            bucket,
            random_crop=training and config.crop == "random",
            flip=config.flip if training else 0.0,
            captioner=reader.captioner(config),
        )

    if not config.aspect_ratios:
        (only,) = shapes
        return _together(collection.name, [source(None, only)], collection.skipped)

    def size(place: int) -> tuple[int, int]:
        with collection.read(place).data as stream:
            return picture_size(stream, collection.key(place))

    skipped = Skipped()
    skipped.merge(collection.skipped)
    sizes = scan(len(collection), size, collection.signature(), _index(config, reader), skipped)
    found = by_bucket(sizes, config.aspect_ratios)
    check(len(found) > 0, f"data path {config.path} holds no picture that can be read{_first(skipped)}")
    return _together(collection.name, [source(places, bucket) for bucket, places in found.items()], skipped)


def _clips(config: SourceConfig, reader: _Reader, path: Path) -> Source:
    shapes, channels = reader.shapes(config), reader.channels(config)
    training = reader.split == "train"
    drop_first = config.drop_first if training else 0.0
    folder = _folder(path, reader.split, CLIP_SUFFIXES)
    skipped = Skipped()
    facts = scan(len(folder), lambda i: facts_of(folder, i), folder.signature(), _index(config, reader), skipped)
    needed = frames_needed(config.frames, drop_first)
    for place, one in enumerate(facts):
        if one is not None:
            video = VideoFacts(int(one[0]), int(one[1]), *one[2:])
            # Times in headers are rounded: half a frame is forgiven.
            if latest_start(video, needed, config.fps) < -0.5 / video.fps:
                facts[place] = None
                skipped.bad += 1
                reason = f"it lasts {video.seconds:.3g} s, too short for {needed} frames"
                skipped.reasons.setdefault(folder.key(place), reason)
    found = by_bucket(facts, tuple(shapes))
    check(len(found) > 0, f"data path {path} holds no video that can be used{_first(skipped)}")
    sources = [
        ClipSource(
            folder,
            places,
            np.asarray([facts[place] for place in places], np.float64),
            config.frames,
            config.fps,
            shapes[bucket],
            channels,
            bucket,
            random_crop=training and config.crop == "random",
            flip=config.flip if training else 0.0,
            drop_first=drop_first,
            captioner=reader.captioner(config),
        )
        for bucket, places in found.items()
    ]
    return _together(folder.name, sources, skipped)


def _together(name: str, sources: list[PictureSource] | list[ClipSource], skipped: Skipped) -> Mixture:
    """Buckets as one source, each read in proportion to how many examples it has."""
    return Mixture(name, tuple(Component(source, float(len(source))) for source in sources), skipped)


def _index(config: SourceConfig, reader: _Reader) -> Path | None:
    """The file of this split: a split's index would replace that of another."""
    if config.index is None:
        return None
    path = Path(config.index)
    return path.with_name(f"{path.stem}-{reader.split}{path.suffix or '.json'}")


def _ratio(height: int, width: int) -> str:
    common = math.gcd(height, width)
    return f"{width // common}:{height // common}"


def _first(skipped: Skipped) -> str:
    return "".join(f", such as {name}: {reason}" for name, reason in list(skipped.reasons.items())[:1])
