"""Pictures of a collection, decoded, cropped and captioned: a source whose examples all have one shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow_jax.data.decoding.image_files import Cut, decode_picture
from starflow_jax.data.pipeline.draw import CAPTION
from starflow_jax.data.pipeline.fingerprint import digest_of
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.data.sources.collection import Collection


@dataclass(frozen=True, eq=False)
class PictureSource:
    """`image` uint8 [H, W, C], `label` int32 [] (-1: none), and with a captioner `text` int32 [L].

    Attributes:
      collection: the files; places: which of them, None for all.
      size: rows and columns; channels: 1 or 3; bucket: "width:height", what the shape is called.
      random_crop, flip: whether a drawn example is cropped anywhere; the probability that it is mirrored.
      captioner: of an experiment that reads captions.
    """

    collection: Collection
    places: np.ndarray | None
    size: tuple[int, int]
    channels: int
    bucket: str
    random_crop: bool = False
    flip: float = 0.0
    captioner: Captioner | None = None

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.collection.name} {self.bucket}"

    @property
    def levels(self) -> int:
        """Values of a pixel."""
        return 256

    @property
    def num_classes(self) -> int:
        """Classes of the collection."""
        return self.collection.num_classes

    def __len__(self) -> int:
        return len(self.collection) if self.places is None else len(self.places)

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and dtypes of an example."""
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "image": ((*self.size, self.channels), np.dtype(np.uint8)),
            "label": ((), np.dtype(np.int32)),
        }
        if self.captioner is not None:
            found["text"] = ((self.captioner.encoder.length,), np.dtype(np.int32))
        return found

    def digest(self) -> str:
        """Of the names and sizes of the pictures."""
        places = range(len(self.collection)) if self.places is None else self.places
        return digest_of(self.collection.identity(int(place)) for place in places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example as it is scored: cropped about the centre, not mirrored, its caption always the same one."""
        return self._example(index, np.random.default_rng(index), 0.5, False)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """An example as it is trained on."""
        place, mirror = rng.random(2)
        return self._example(index, rng, float(place) if self.random_crop else 0.5, bool(mirror < self.flip))

    def _example(self, index: int, rng: np.random.Generator, place: float, flip: bool) -> dict[str, Any]:
        """Raises BadExample."""
        if not 0 <= index < len(self):
            raise IndexError(f"example must be 0 to {len(self) - 1}, got {index}")
        found = index if self.places is None else int(self.places[index])
        item = self.collection.read(found, captions=self.captioner is not None)
        with item.data as stream:
            cut = Cut(self.size, self.channels, place, flip)
            image = decode_picture(stream, self.collection.key(found), cut)
        example = {"image": image, "label": np.int32(item.label)}
        if self.captioner is None:
            return example
        prompt = self.captioner.prompt(self.captioner.choose(item.captions, rng), self.bucket)
        return {**example, "text": self.captioner.ids(prompt), CAPTION: prompt}
