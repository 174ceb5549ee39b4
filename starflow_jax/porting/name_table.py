"""Tables that a user writes for files of other implementations: names here, and names in such a file.

A table is a file of JSON, one object:

    {
      "blocks.{block}.attn_blocks.{layer}.attention.qkv.weight": ["f.{block}.{layer}.q", "f.{block}.{layer}.k", ...],
      "blocks.{block}.proj_in.weight": {"from": "f.{block}.input", "transpose": true},
      "var": "prior",
      "ignore": ["*.steps", "f.{block}.mask"]
    }

Keys are names of this project, in the convention of the originals; a value is the name in the file, or the names of
tensors that are concatenated along their first axis. A placeholder in braces stands for a decimal integer. "ignore",
which is the name of no tensor, lists tensors of the file that nothing reads, where `*` stands for any text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starflow_jax.core.regular_files import read_json

IGNORE = "ignore"
_FROM, _TRANSPOSE = "from", "transpose"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_INTEGER = "0|[1-9][0-9]*"

Values = Mapping[str, str]  # of placeholders, in decimal


@dataclass(frozen=True)
class Pattern:
    """A name with placeholders, each of which stands for a decimal integer.

    Attributes:
      text: the name; a placeholder that occurs twice has one value.
    """

    text: str

    @functools.cached_property
    def placeholders(self) -> frozenset[str]:
        """The names of the placeholders."""
        return frozenset(_PLACEHOLDER.findall(self.text))

    @functools.cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(_expression(self.text))

    def match(self, name: str) -> Values | None:
        """The values of the placeholders in a name; None for a name that does not match."""
        match = self._expression.fullmatch(name)
        return None if match is None else match.groupdict()

    def filled(self, values: Values) -> str:
        """The name with these values of the placeholders."""
        return _PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], self.text)


def _expression(text: str) -> str:
    """The regular expression of the names that a pattern matches."""
    seen: set[str] = set()
    pieces = []
    for index, piece in enumerate(_PLACEHOLDER.split(text)):  # names of placeholders have odd indices
        if index % 2 == 0:
            pieces.append(re.escape(piece))
        else:
            pieces.append(f"(?P={piece})" if piece in seen else f"(?P<{piece}>{_INTEGER})")
            seen.add(piece)
    return "".join(pieces)


@dataclass(frozen=True)
class TableEntry:
    """One line of a table.

    Attributes:
      name: of this project.
      parts: names in the file; several tensors are concatenated along their first axis.
      transpose: whether each of them is the transpose of a part.
    """

    name: Pattern
    parts: tuple[Pattern, ...]
    transpose: bool = False

    def part_names(self, values: Values) -> tuple[str, ...]:
        """The names in the file, for these values of the placeholders."""
        return tuple(part.filled(values) for part in self.parts)


@dataclass(frozen=True)
class NameTable:
    """A table, read from a file and checked.

    Attributes:
      path: of its file, for messages.
      entries: its lines.
      ignored: regular expressions of the names in a file that nothing reads.
    """

    path: str
    entries: tuple[TableEntry, ...]
    ignored: tuple[re.Pattern[str], ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether the table lists a name in a file as one that nothing reads."""
        return any(pattern.fullmatch(name) for pattern in self.ignored)

    def entry_of(self, name: str) -> tuple[TableEntry, Values] | None:
        """The line that mentions a name of this project, and the values of its placeholders; None for no line.

        Raises:
          ValueError: two lines mention it.
        """
        found = [(self.entries[at], values) for at, _, values in self._by_name.matches(name)]
        if len(found) > 1:
            raise ValueError(f"{self.path} has two entries that give {name}: {_keys(line for line, _ in found)}")
        return found[0] if found else None

    def use_of(self, file_name: str) -> tuple[TableEntry, int, Values] | None:
        """The line that mentions a name in a file, the index of the part, and the values; None for no line.

        Raises:
          ValueError: two lines mention it, or one line twice.
        """
        found = [(self.entries[at], part, values) for at, part, values in self._by_part.matches(file_name)]
        if len(found) > 1:
            keys = _keys(line for line, _, _ in found)
            raise ValueError(f"{self.path} takes the tensor {file_name} of the file twice: {keys}")
        return found[0] if found else None

    def file_names(self, name: str) -> str | None:
        """The name in the file, or the names, of a tensor of this project; None where the table does not mention it."""
        found = self.entry_of(name)
        return None if found is None else ", ".join(found[0].part_names(found[1]))

    @functools.cached_property
    def _by_name(self) -> _Index:
        return _Index([(entry.name, at, 0) for at, entry in enumerate(self.entries)])

    @functools.cached_property
    def _by_part(self) -> _Index:
        parts = [(part, at, index) for at, entry in enumerate(self.entries) for index, part in enumerate(entry.parts)]
        return _Index(parts)


class _Index:
    """Finds the patterns that match a name; those without placeholders by a dictionary."""

    def __init__(self, patterns: Sequence[tuple[Pattern, int, int]]):
        self._literal: dict[str, list[tuple[int, int]]] = {}
        self._others = [one for one in patterns if one[0].placeholders]
        for pattern, at, part in patterns:
            if not pattern.placeholders:
                self._literal.setdefault(pattern.text, []).append((at, part))

    def matches(self, name: str) -> list[tuple[int, int, Values]]:
        """The index of the line and of its part, and the values of the placeholders, of each pattern that matches."""
        found: list[tuple[int, int, Values]] = [(at, part, {}) for at, part in self._literal.get(name, ())]
        for pattern, at, part in self._others:
            if (values := pattern.match(name)) is not None:
                found.append((at, part, values))
        return sorted(found, key=lambda one: one[:2])


def _keys(entries: Iterable[TableEntry]) -> str:
    return " and ".join(repr(entry.name.text) for entry in entries)


def read_name_table(path: Path) -> NameTable:
    """Reads a table from a file of JSON.

    Raises:
      ValueError: the file cannot be read, is too large, is not JSON or not an object, has a key twice, or a value that
        is not of the form of a table; the message is one sentence that names the file and the key.
    """
    content = read_json(path, unique_keys=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a JSON object of names, got {_short(content)}")
    try:
        entries = tuple(_entry(name, value) for name, value in content.items() if name != IGNORE)
        return NameTable(str(path), entries, _ignored(content.get(IGNORE, [])))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entry(name: str, value: Any) -> TableEntry:
    transpose = False
    if isinstance(value, dict):
        if not {_FROM} <= set(value) <= {_FROM, _TRANSPOSE} or not isinstance(value.get(_TRANSPOSE, False), bool):
            raise ValueError(
                f'{name!r} must be a name, a list of names, or {{"from": ..., "transpose": true}}, got {_short(value)}'
            )
        value, transpose = value[_FROM], value.get(_TRANSPOSE, False)
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(one, str) for one in names):
        raise ValueError(f"{name!r} must be a name of a tensor or a list of names, got {_short(value)}")
    own, parts = _pattern(name), tuple(map(_pattern, names))
    for part in parts:
        if part.placeholders != own.placeholders:
            raise ValueError(
                f"{part.text!r} must have the placeholders of {name!r}, {_braced(own)}, got {_braced(part)}"
            )
    return TableEntry(own, parts, transpose)


def _pattern(text: str) -> Pattern:
    if not text:
        raise ValueError("a name must not be empty")
    if text == "__metadata__" or not _is_unicode(text):
        raise ValueError(f"{text!r} must be a name that a file of tensors can hold")
    if set("{}") & set(_PLACEHOLDER.sub("", text)):
        raise ValueError(f"{text!r} must have braces around the names of placeholders alone, such as {{block}}")
    if re.search(r"\}[0-9]*\{", text):
        raise ValueError(f"{text!r} must have more than digits between two placeholders, which would be ambiguous")
    return Pattern(text)


def _ignored(value: Any) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{IGNORE!r} must be a list of names, got {_short(value)}")
    for text in value:
        if re.search(r"\}[0-9]*\*|\*[0-9]*\{", text):
            raise ValueError(f"{text!r} must have more than digits between a placeholder and *, which stands for both")
    return tuple(re.compile(_ignoring(_pattern(text).text), re.DOTALL) for text in value)


def _ignoring(text: str) -> str:
    """The regular expression of names that nothing reads; `*` is any text, and every placeholder any integer."""
    first, *others = (
        f"(?:{_INTEGER})".join(map(re.escape, _PLACEHOLDER.sub("{}", piece).split("{}"))) for piece in text.split("*")
    )
    # Atomic groups: the text of a star that others follow is the shortest, and no longer one is tried.
    return "".join([first, *(f"(?>.*?{piece})" for piece in others[:-1]), *(f".*{piece}" for piece in others[-1:])])


def _is_unicode(text: str) -> bool:
    """Whether a text can be written, without halves of surrogate pairs, which JSON can escape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _braced(pattern: Pattern) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(pattern.placeholders)) or "none"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
