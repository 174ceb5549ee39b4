"""Image files of a collection, decoded, cropped and captioned: a source whose examples all have one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.decoding.image_decoding import Crop, decode_image, image_file_size
from starflow_jax.data.sources.base import CAPTION, lines_digest
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.image_collection import ImageCollection
from starflow_jax.data.sources.mixture import Mixture, mixture_of_buckets
from starflow_jax.data.sources.size_index import by_bucket, by_bucket_of_arrays, scan_files
from starflow_jax.data.sources.source_request import SourceRequest


@dataclass(frozen=True, eq=False)
class ImageSource:
    """`image` uint8 [H, W, C], `label` int32 [] (-1: none), and with a captioner `text` int32 [L].

    Attributes:
      collection: the files; indices: which of them, None for all.
      size: rows and columns; channels: 1 or 3; bucket: the aspect ratio "width:height" of `size`.
      random_crop, flip: whether `draw` crops at a random position; the probability that it mirrors.
      captioner: chooses and encodes captions; None for an experiment that reads none.
      background: the colour that transparent pixels are composed onto.
    """

    collection: ImageCollection
    indices: np.ndarray | None
    size: tuple[int, int]
    channels: int
    bucket: str
    random_crop: bool = False
    flip: float = 0.0
    captioner: Captioner | None = None
    background: Background = "white"

    @property
    def name(self) -> str:
        """Name in logs."""
        return f"{self.collection.name} {self.bucket}"

    @property
    def levels(self) -> int:
        """Number of levels of a pixel."""
        return 256

    @property
    def num_classes(self) -> int:
        """Number of classes of the collection."""
        return self.collection.num_classes

    def __len__(self) -> int:
        return len(self.collection) if self.indices is None else len(self.indices)

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and dtypes of an example."""
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "image": ((*self.size, self.channels), np.dtype(np.uint8)),
            "label": ((), np.dtype(np.int32)),
        }
        if self.captioner is not None:
            arrays["text"] = ((self.captioner.encoder.length,), np.dtype(np.int32))
        return arrays

    def digest(self) -> str:
        """Digest of the names and sizes of the files, or of what the collection knows of its contents."""
        contents = getattr(self.collection, "digest", None)
        if contents is not None:
            return str(contents(self.indices))
        indices = range(len(self.collection)) if self.indices is None else self.indices
        return lines_digest(self.collection.identity(int(index)) for index in indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example for evaluation: centre crop, not mirrored, always the same caption."""
        return self._example(index, np.random.default_rng(index), 0.5, False)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A randomly augmented training example."""
        position, mirror = rng.random(2)
        return self._example(index, rng, float(position) if self.random_crop else 0.5, bool(mirror < self.flip))

    def _example(self, index: int, rng: np.random.Generator, position: float, flip: bool) -> dict[str, Any]:
        """Raises BadExample."""
        if not 0 <= index < len(self):
            raise IndexError(f"example must be 0 to {len(self) - 1}, got {index}")
        file = index if self.indices is None else int(self.indices[index])
        item = self.collection.read(file, captions=self.captioner is not None)
        with item.data as stream:
            crop = Crop(self.size, self.channels, position, flip, self.background)
            image = decode_image(stream, self.collection.key(file), crop)
        example = {"image": image, "label": np.int32(item.label)}
        if self.captioner is None:
            return example
        prompt = self.captioner.prompt(self.captioner.choose(item.captions, rng), self.bucket)
        return {**example, "text": self.captioner.ids(prompt), CAPTION: prompt}


def open_image_files(config: SourceConfig, request: SourceRequest, collection: ImageCollection) -> Mixture:
    """A source of the images of a collection, with one component for each aspect-ratio bucket.

    Raises:
      ValueError: no image can be read, or the flow cannot read images.
    """
    shapes, channels = request.image_shapes(config), request.channels(config)

    def source(indices: np.ndarray | None, bucket: str) -> ImageSource:
        return ImageSource(
            collection,
            indices,
            shapes[bucket],
            channels,
            bucket,
            random_crop=request.training and config.crop == "random",
            flip=config.flip if request.training else 0.0,
            captioner=request.captioner(config),
            background=config.background,
        )

    if not config.aspect_ratios:
        (bucket,) = shapes
        return mixture_of_buckets(collection.name, [source(None, bucket)], collection.skipped)

    def size(index: int) -> tuple[int, int]:
        with collection.read(index).data as stream:
            return image_file_size(stream, collection.key(index))

    skipped = Skipped()
    skipped.merge(collection.skipped)
    stored: Callable[[], Iterable[np.ndarray]] | None = getattr(collection, "image_sizes", None)
    if stored is not None:
        buckets = by_bucket_of_arrays(stored(), config.aspect_ratios)
    else:
        sizes = scan_files(len(collection), size, collection.signature(), request.index_file(config), skipped)
        buckets = by_bucket(sizes, config.aspect_ratios)
    check(len(buckets) > 0, f"data path {config.path} contains no readable image{skipped.first()}")
    return mixture_of_buckets(collection.name, [source(indices, name) for name, indices in buckets.items()], skipped)
