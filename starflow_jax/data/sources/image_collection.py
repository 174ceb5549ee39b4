"""The interface of a set of image files before anything is decoded, and the formats of caption files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple, Protocol

from starflow_jax.data.decoding.bad_examples import BadExample, Skipped

# Captions by kind; those of one kind are equally likely.
Captions = Mapping[str, tuple[str, ...]]
DEFAULT_KIND = "caption"
MAX_CAPTION_BYTES = 2**20


class Item(NamedTuple):
    """One example: a context manager of its bytes; its class, -1 for none; its captions where requested."""

    data: AbstractContextManager[BinaryIO]
    label: int
    captions: Captions


class ImageCollection(Protocol):
    """Image files in folders, tars, or records. Picklable, since it is sent to worker processes."""

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

    def read(self, index: int, captions: bool = False) -> Item:
        """Reads one example; raises BadExample where that fails."""
        ...

    def identity(self, index: int) -> str:
        """Name and size of an example, independent of where the files are stored."""
        ...

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the files."""
        ...


def captions_from_text(data: bytes, name: str) -> Captions:
    """Captions of a text file, one per line. Raises BadExample unless it is UTF-8."""
    lines = (" ".join(line.split()) for line in _decode(data, name).splitlines())
    return {DEFAULT_KIND: tuple(line for line in lines if line)}


def captions_from_json(data: bytes, name: str) -> Captions:
    """Captions of a JSON file: `{"captions": {kind: text or list of texts}}`, or `{"caption": text}`.

    Raises:
      BadExample: not JSON, or no captions of that form.
    """
    try:
        values = json.loads(_decode(data, name))
    except (ValueError, RecursionError) as error:
        raise BadExample(name, f"its caption file is not JSON: {error}") from error
    kinds = values.get("captions", values.get(DEFAULT_KIND)) if isinstance(values, dict) else values
    if not isinstance(kinds, dict):
        kinds = {DEFAULT_KIND: kinds}
    return {str(kind): _texts(texts, name) for kind, texts in kinds.items()}


def _texts(texts: Any, name: str) -> tuple[str, ...]:
    texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise BadExample(name, "its captions must be text, or lists of text")
    return tuple(texts)


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise BadExample(name, f"its caption file has more than {MAX_CAPTION_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadExample(name, f"its caption file is not UTF-8 (at byte {error.start})") from error
