"""The interface of a set of image files before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol

from starflow_jax.data.decoding.bad_examples import Skipped

# Captions by kind; those of one kind are equally likely.
Captions = Mapping[str, tuple[str, ...]]
DEFAULT_KIND = "caption"


class Item(NamedTuple):
    """One example: a context manager of its bytes; its class, -1 for none; its captions where requested."""

    data: AbstractContextManager[BinaryIO]
    label: int
    captions: Captions


class ExampleCaptions(NamedTuple):
    """The captions of one example by kind, and where they were found: a kind of file, "" for nowhere."""

    texts: Captions
    origin: str = ""


class ImageCollection(Protocol):
    """Image files in folders, tars, or records. Picklable, since it is sent to worker processes.

    A collection may also have `captions(index) -> ExampleCaptions`, which reads captions without the image, so that
    they are counted before training (`data.pipeline.caption_account`); `classes`, the names of the classes; `notes`,
    sentences about what is left aside; `image_sizes()`, rows and columns of all images in arrays int [n, 2], so that no
    header is read for buckets; and `digest(indices)`, a digest of the examples at `indices` (None: all).
    """

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def skipped(self) -> Skipped:
        """The examples that could not be read when the collection was opened."""
        ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Name of an example in reports."""
        ...

    def relative_key(self, index: int) -> str:
        """Name of an example in the data, which none other has, independent of where the files are stored."""
        ...

    def read(self, index: int, captions: bool = False) -> Item:
        """Reads one example; raises BadExample where that fails."""
        ...

    def identity(self, index: int) -> str:
        """Name and size of an example, independent of where the files are stored."""
        ...

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the files."""
        ...
