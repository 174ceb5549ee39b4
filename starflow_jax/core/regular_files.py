"""Reading of files that somebody else wrote: regular files of bounded size, and JSON with integers of bounded size.

To open a named pipe waits until somebody writes to it, and to read a device may never end. `open_file` refuses both.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
MAX_TEXT_BYTES = 2**26
_MAX_DIGITS = 20  # of an integer in JSON, with its sign: 64 bits


class NotAFile(OSError):
    """The path leads to a folder, a named pipe, a socket or a device instead of a file."""


def open_file(path: Path | str) -> IO[bytes]:
    """Opens a regular file for reading, without waiting.

    Raises:
      NotAFile: the path leads to something else than a regular file.
      OSError: the file is missing or not readable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        # Some devices and all sockets cannot be opened; the sentence states what they are.
        check_file(path)
        raise error
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_file(path: Path | str) -> None:
    """Checks that a path leads to a regular file, for libraries that open it by its name.

    Raises:
      NotAFile: it leads to something else.
      OSError: it leads to nothing.
    """
    _check_mode(path, os.stat(path).st_mode)


def file_kind(mode: int) -> str:
    """What a path leads to ("a file", "a folder", "a named pipe"), by the `st_mode` of its status."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a special file")


def _check_mode(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFile(errno.EINVAL, f"it is {file_kind(mode)}, not a file", str(path))


def read_bytes(path: Path | str, max_bytes: int | None = None) -> bytes:
    """Reads a regular file of at most `max_bytes` bytes.

    Raises:
      OSError: see `open_file`.
      ValueError: the file is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{path} must have at most {max_bytes} bytes, got {size}")
        return file.read()


def read_text(path: Path | str, max_bytes: int = MAX_TEXT_BYTES, encoding: str = "utf-8") -> str:
    """Reads a regular file of text, with line ends as `\\n`.

    Raises:
      OSError: see `open_file`.
      UnicodeDecodeError: it holds other bytes.
      ValueError: the file has more than `max_bytes` bytes.
    """
    return read_bytes(path, max_bytes).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path | str, max_bytes: int = MAX_TEXT_BYTES, *, unique_keys: bool = False) -> Any:
    """Reads a file of JSON.

    Raises:
      ValueError: the file is missing, is not a regular file, is larger than `max_bytes` bytes, or contains something
        else, or, with `unique_keys`, a key twice in one object; the message is one sentence that names the file.
    """
    try:
        text = read_text(path, max_bytes)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: it contains bytes that are not UTF-8") from error
    try:
        return parse_json(text, unique_keys=unique_keys)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parses JSON. An integer of more than 64 bits, which no field needs, is refused, as is a deep nesting.

    Raises:
      ValueError: the text is not JSON, or not such JSON; with `unique_keys`, an object has a key twice, whose last
        value is taken otherwise.
    """
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object if unique_keys else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"it contains the key {key[:120]!r} twice")
        values[key] = value
    return values


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it contains an integer of {len(digits.lstrip('-'))} digits")
    return int(digits)
