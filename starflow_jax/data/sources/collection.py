"""What a set of picture files offers before anything is decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple, Protocol

from starflow_jax.data.decoding.bad_examples import BadExample, Skipped

# Captions by kind: several of one kind are drawn from alike.
Captions = Mapping[str, tuple[str, ...]]
PLAIN = "caption"
MAX_CAPTION_BYTES = 2**20


class Item(NamedTuple):
    """One example: its bytes, to be read within `with`; its class, -1 for none; its captions where asked for."""

    data: AbstractContextManager[BinaryIO]
    label: int
    captions: Captions


class Collection(Protocol):
    """Pictures in files: folders, tars, or records. Picklable, as worker processes are given it."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def skipped(self) -> Skipped:
        """What was bad already when it was opened."""
        ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """What an example is called in reports."""
        ...

    def read(self, index: int, captions: bool = False) -> Item:
        """One example; raises BadExample where it cannot be had."""
        ...

    def identity(self, index: int) -> str:
        """The name and size of an example, wherever the files lie."""
        ...

    def signature(self) -> str:
        """Changes when the files do, as far as their names, sizes and times tell."""
        ...


def captions_of_text(data: bytes, name: str) -> Captions:
    """Captions of a text file, one a line. Raises BadExample unless it is UTF-8."""
    lines = (" ".join(line.split()) for line in _decoded(data, name).splitlines())
    return {PLAIN: tuple(line for line in lines if line)}


def captions_of_json(data: bytes, name: str) -> Captions:
    """Captions of a JSON file: `{"captions": {kind: text or list of texts}}`, or `{"caption": text}`.

    Raises:
      BadExample: no JSON, or no captions of that form.
    """
    try:
        values = json.loads(_decoded(data, name))
    except (ValueError, RecursionError) as error:
        raise BadExample(name, f"its caption file is no JSON: {error}") from error
    kinds = values.get("captions", values.get(PLAIN)) if isinstance(values, dict) else values
    if not isinstance(kinds, dict):
        kinds = {PLAIN: kinds}
    return {str(kind): _texts(texts, name) for kind, texts in kinds.items()}


def _texts(texts: Any, name: str) -> tuple[str, ...]:
    texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise BadExample(name, "its captions must be text, or lists of text")
    return tuple(texts)


def _decoded(data: bytes, name: str) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise BadExample(name, f"its caption file has more than {MAX_CAPTION_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadExample(name, f"its caption file is not UTF-8 (at byte {error.start})") from error
