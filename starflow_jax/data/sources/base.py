"""The interface of a source of labelled images or clips, and its simplest implementation: two arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Key of the caption of an example, as text. It is for reports and not part of a batch.
CAPTION = "caption"


class Source(Protocol):
    """A finite, indexable set of labelled images or clips with integer pixel values in `0 .. levels - 1`."""

    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> int:
        """Number of levels of a pixel, 0 for continuous values."""
        ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`image` uint8 [H, W, C] ([T, H, W, C] for a clip) and `label` int32 [] of one example.

        A source with captions adds `text`, token ids int32 [L], or `text_states` float32 [L, D]. Where `levels` is 0,
        `image` is float32 and used without scaling. A source may also have these methods: `draw(index, rng)` returns a
        randomly augmented training example; `spec()` returns the shapes and dtypes without reading an example;
        `digest()` identifies the contents (`data.pipeline.fingerprint`); `with_frames(frames)` returns a source of
        shorter clips. A source that generates its captions has an attribute `vocabulary`, their words.

        Raises:
          BadExample: an example in a file cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A source in memory.

    Attributes:
      name: name in logs.
      images: uint8 [n, H, W, C], values in `0 .. levels - 1`.
      labels: int32 [n], values in `0 .. num_classes - 1`.
      levels: number of levels of a pixel, 2 to 256.
      num_classes: number of classes.

    Raises:
      ValueError: a dtype, shape or value is not as stated.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    levels: int
    num_classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or 0 in self.images.shape:
            raise ValueError(
                "images must be uint8 of shape [n, H, W, C], all above 0, "
                f"got {self.images.dtype} {list(self.images.shape)}."
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int32 of shape [{len(self.images)}], one for each image, "
                f"got {self.labels.dtype} {list(self.labels.shape)}."
            )
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be 2 to 256, got {self.levels}.")
        brightest = int(self.images.max())
        if brightest >= self.levels:
            raise ValueError(f"images must contain values below levels ({self.levels}), got {brightest}.")
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(
                f"labels must be 0 to {self.num_classes - 1} (num_classes - 1), got {lowest} to {highest}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}

    def digest(self) -> str:
        """Digest of the shape, all labels, and about sixty of the images."""
        digest = hashlib.sha256(f"{self.images.shape} {self.levels}".encode())
        for array in (self.labels, self.images[:: max(1, len(self) // 64)]):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def subset(self, indices: np.ndarray, name: str) -> ArraySource:
        """A source called `name` of the examples at `indices` (int [m], repeats allowed), in that order."""
        return ArraySource(name, self.images[indices], self.labels[indices], self.levels, self.num_classes)


def lines_digest(lines: Iterable[str]) -> str:
    """Digest of lines of text in their order, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]
