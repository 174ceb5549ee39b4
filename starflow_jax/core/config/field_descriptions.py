"""The descriptions of the fields of a dataclass, read from the "Attributes" section of its docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re

# The names of fields in front of a description: "a, b: text; c: text. d: text".
NAMES = re.compile(r"(?:(?<=[;.] )|^)([a-z]\w*(?:, \w+)*):")


# The line that begins the section; a class may add "(besides those of ...)", whose docstring has the others.
_SECTION = re.compile(r"^Attributes[^:\n]*:$", re.MULTILINE)


def summary(cls: type) -> str:
    """The docstring of a class in front of the section."""
    return _SECTION.split(inspect.cleandoc(cls.__doc__ or ""), maxsplit=1)[0].strip()


def entries(cls: type) -> list[str]:
    """The entries of the section, each on one line; those of base classes come first."""
    found = []
    for base in reversed(cls.__mro__):
        _, *section = _SECTION.split(inspect.cleandoc(base.__doc__ or ""), maxsplit=1)
        if section and dataclasses.is_dataclass(base):
            parts = re.split(r"\n  (?=\S)", section[0].split("\n\n")[0].rstrip())
            found += [" ".join(part.split()) for part in parts if part.strip()]
    return found


def field_descriptions(cls: type) -> dict[str, str]:
    """The description of each field by its name; fields that are described together have the same one."""
    declared = {field.name for field in dataclasses.fields(cls)}
    found: dict[str, str] = {}
    for entry in entries(cls):
        groups = [group for group in NAMES.finditer(entry) if declared.issuperset(group[1].split(", "))]
        for group, following in zip(groups, [*groups[1:], None], strict=True):
            text = entry[group.end() : following.start() if following else None].strip().removesuffix(";")
            for name in group[1].split(", "):
                found[name] = text
    return found
