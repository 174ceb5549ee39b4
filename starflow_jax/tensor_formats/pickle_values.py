"""The values that the restricted reader of pickles builds beside plain ones: stand-ins, records and placeholders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Refused(ValueError):
    """A pickle is damaged or uses an operation that no file of tensors needs; the message states which."""


@dataclass(frozen=True)
class StandIn:
    """Replacement for an object that a pickle refers to by a name of the table.

    Attributes:
      name: the name in the file.
      build: builds the value from the arguments of a call; None if a call gives a placeholder.
      value: the value of the name itself, such as a dtype.
      is_plain: whether a call gives a placeholder of a plain value, which is not listed.
    """

    name: str
    build: Callable[..., Any] | None = None
    value: Any = None
    is_plain: bool = False


@dataclass(eq=False)
class Record:
    """An object of a named class with its pickled state, usually its fields."""

    name: str
    state: Any = None


@dataclass(eq=False, frozen=True)
class Placeholder:
    """An object of a name outside of the table. It keeps nothing of what a pickle gives to it.

    Attributes:
      name: the class or function that the file names.
      is_plain: whether it stands for a plain value without a tensor, such as a set or a long integer, which is left out
        as numbers and text are; other placeholders are listed.
    """

    name: str
    is_plain: bool = False


@dataclass(eq=False, frozen=True)
class Key:
    """A key of a dictionary that is compared by identity: to hash nested tuples can take forever."""

    value: Any


_CHEAP_KEYS = (str, int, float, bytes, type(None), Record, Placeholder)
# Functions that build an object of the class that is their first argument.
_CONSTRUCTORS = {
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "copyreg.__newobj__",
    "copy_reg.__newobj__",
    "builtins.getattr",
    "__builtin__.getattr",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}


def key_of(value: Any) -> Any:
    """The key under which a dictionary holds a value that a pickle gives as a key."""
    return value if isinstance(value, _CHEAP_KEYS) else Key(value)


def result_of(function: StandIn | Placeholder, arguments: Any) -> Placeholder:
    """The placeholder for the result of a call that is not made."""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else None
    if function.name in _CONSTRUCTORS and isinstance(first, (StandIn, Placeholder)):
        return Placeholder(first.name)
    return Placeholder(function.name)
