"""One record of a folder that `starflow prepare` writes: an encoded image with its label, size, name and captions."""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import parse_json
from starflow_jax.data.sources.image_collection import ExampleCaptions

_HEAD = struct.Struct("<iIII")
_MAX_TEXT_BYTES = 2**24


class StoredImage(NamedTuple):
    """One image.

    Attributes:
      data: the bytes of the image file, as they were.
      label: index of the class, -1 for none.
      size: rows and columns as it is displayed.
      name: name in the data that were prepared, without their path.
      captions: its captions by kind, and the kind of file that contained them.
    """

    data: bytes
    label: int
    size: tuple[int, int]
    name: str
    captions: ExampleCaptions

    def pack(self) -> bytes:
        """The record: label int32, rows, columns and length of the text uint32, the text as JSON, the image file."""
        values = {"name": self.name, "origin": self.captions.origin, "captions": self.captions.texts}
        text = json.dumps(values, separators=(",", ":")).encode("ascii")
        return _HEAD.pack(self.label, *self.size, len(text)) + text + self.data


def unpack(record: bytes) -> StoredImage:
    """The inverse of `StoredImage.pack`.

    Raises:
      ValueError: the bytes are not its output.
    """
    check(len(record) >= _HEAD.size, f"its record has {len(record)} bytes")
    label, rows, columns, length = _HEAD.unpack_from(record)
    begin = _HEAD.size + length
    check(
        length <= _MAX_TEXT_BYTES and begin <= len(record), f"its record has {len(record)} bytes and a text of {length}"
    )
    check(label >= -1 and min(rows, columns) >= 1, f"its label is {label} and its size {rows} x {columns}")
    values = parse_json(record[_HEAD.size : begin])
    try:
        texts = {str(kind): tuple(map(_text, several)) for kind, several in values["captions"].items()}
        name, origin = _text(values["name"]), _text(values["origin"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("its captions cannot be read") from error
    return StoredImage(record[begin:], label, (rows, columns), name, ExampleCaptions(texts, origin))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
