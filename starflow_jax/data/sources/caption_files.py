"""Captions in files: text files, JSON files and rows of tables, and the rules by which a caption is recognised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starflow_jax.core.config.source_config import CaptionConfig
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.sources.image_collection import DEFAULT_KIND, Captions

MAX_CAPTION_BYTES = 2**20
# Keys of a JSON file and columns of a table that contain captions, the first that has one counts.
KEYS = ("captions", DEFAULT_KIND, "text", "prompt")
# Suffixes of caption files in the order in which they are read, with the names of their kinds in reports.
FILE_KINDS = {".json": "JSON file", ".txt": "text file", ".caption": ".caption file"}


@dataclass(frozen=True)
class CaptionFormat:
    """How captions are read.

    Attributes:
      alternatives: whether each line of a text file is a caption of its own; otherwise the file is one caption.
      key: the JSON key or column that contains captions; None for the first of `KEYS` that has one.
    """

    alternatives: bool = False
    key: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys or columns that may contain captions, in order."""
        return KEYS if self.key is None else (self.key,)

    @classmethod
    def from_config(cls, config: CaptionConfig) -> CaptionFormat:
        """The format that a configuration states."""
        return cls(config.lines == "alternatives", config.key)

    def read(self, suffix: str, data: bytes, name: str) -> Captions:
        """The captions of a file with one of the suffixes of `FILE_KINDS`; without any, empty or of empty tuples.

        Raises:
          BadExample: not UTF-8, not JSON, too long, or captions that are not text. `name` is that of the example.
        """
        text = _decode(data, name)
        if suffix != ".json":
            return self.from_text(text)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadExample(name, f"its caption file is not JSON: {error}") from error
        return self.from_json(values, name)

    def from_text(self, text: str) -> Captions:
        """The captions of a text: one, or one a line."""
        parts = text.splitlines() if self.alternatives else [text]
        return {DEFAULT_KIND: tuple(line for line in (" ".join(part.split()) for part in parts) if line)}

    def from_json(self, values: Any, name: str) -> Captions:
        """The captions of a JSON value.

        That is a text; a list of texts, which are alternatives; or an object with one of the keys, whose value is a
        text, a list of texts, or an object of these by kind. Objects without such a key have no caption.

        Raises:
          BadExample: captions that are not text.
        """
        if isinstance(values, Mapping):
            return self.from_row(values, name)
        if isinstance(values, list) and not any(isinstance(value, str) for value in values):
            return {}
        return {DEFAULT_KIND: _texts(values, name)}

    def from_row(self, values: Mapping[str, Any], name: str) -> Captions:
        """The captions of an object or of a row of a table; see `from_json`."""
        for key in self.keys:
            value = values.get(key)
            # "text" and "prompt" are also the names of other things than captions.
            if value is None or (key in KEYS[2:] and key != self.key and not _is_text(value)):
                continue
            kinds = value if isinstance(value, Mapping) else {DEFAULT_KIND: value}
            captions = {str(kind): _texts(texts, name) for kind, texts in kinds.items()}
            if has_text(captions):
                return captions
        return {}

    def column(self, columns: Iterable[str]) -> str | None:
        """The first of the columns of a table that can contain captions; None where there is none."""
        present = set(columns)
        return next((key for key in self.keys if key in present), None)


DEFAULT_FORMAT = CaptionFormat()


def has_text(captions: Captions) -> bool:
    """Whether there is any caption; blank ones are left out when they are read."""
    return any(captions.values())


def _is_text(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list | tuple) else [value]))


def _texts(texts: Any, name: str) -> tuple[str, ...]:
    texts = list(texts) if isinstance(texts, list | tuple) else [] if texts is None else [texts]
    if not all(isinstance(text, str) for text in texts):
        raise BadExample(name, "its captions must be text, or lists of text")
    return tuple(text for text in texts if text.strip())


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise BadExample(name, f"its caption file has more than {MAX_CAPTION_BYTES} bytes")
    if b"\0" in data:  # as in UTF-16, which may otherwise pass for UTF-8
        raise BadExample(name, f"its caption file is not UTF-8 (a zero at byte {data.index(0)})")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadExample(name, f"its caption file is not UTF-8 (at byte {error.start})") from error
