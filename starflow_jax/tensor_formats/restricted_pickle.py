"""A safe reader for pickles: a small stack machine that builds plain values and runs no code chosen by the file.

Python's unpickler imports and calls the objects that a file names. This reader looks names up in a fixed table of
stand-ins and refuses all others with an error that gives the name. The standard library's disassembler, which executes
nothing, parses the operations; only those that occur in pickled dictionaries of tensors are supported.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

# The pickle contains the structure of a file, not its values: less than a megabyte for the released models.
MAX_BYTES = 2**25

_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_PUTS = {"BINPUT", "LONG_BINPUT"}
_GETS = {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """A pickle uses a name or operation that a file of tensors does not need; the message states which."""


@dataclass(frozen=True)
class StandIn:
    """Replacement for an object that a pickle refers to by name.

    Attributes:
      name: the name in the file.
      build: builds the value from the arguments of a call; None if the object may not be called.
      value: the value of the name itself, such as a dtype.
    """

    name: str
    build: Callable[..., Any] | None = None
    value: Any = None


@dataclass(eq=False)
class Record:
    """An object of a named class with its pickled state, usually its fields."""

    name: str
    state: Any = None


def load(
    stream: IO[bytes],
    names: Mapping[str, StandIn],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads the pickle at the stream's position and leaves the stream at its end.

    Args:
      stream: the stream to read from.
      names: the allowed names, "module.name" to stand-in.
      persistent: returns the value of a persistent id (a storage, in files of tensors).

    Returns:
      None, numbers, strings, bytes, lists, tuples, dictionaries, records, and what the stand-ins build. Lists and
      dictionaries may contain themselves.

    Raises:
      Refused: a name is not in the table, an operation is not supported, or the data is not a pickle.
    """
    machine = _Machine(names, persistent)
    try:
        for operation, argument in _operations(stream):
            if operation == "STOP":
                (value,) = machine.stack
                return value
            machine.execute(operation, argument)
    except Refused:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, MemoryError) as error:
        raise Refused("its pickled part is damaged") from error
    raise Refused("its pickled part has no end")


def _operations(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    start = stream.tell()
    for operation, argument, position in pickletools.genops(stream):
        if position is not None and position - start > MAX_BYTES:
            raise Refused(f"its pickled part is longer than {MAX_BYTES} bytes")
        yield operation.name, argument


@dataclass(frozen=True, eq=False)
class _Machine:
    """The stack machine of a pickle.

    Attributes:
      names, persistent: see `load`.
      stack: values, and marks that begin lists of arguments; memo: values that later operations refer to.
    """

    names: Mapping[str, StandIn]
    persistent: Callable[[Any], Any] | None
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def execute(self, operation: str, argument: Any) -> None:
        """Executes one operation.

        Raises:
          Refused: the operation, or a name that it refers to, is not supported.
        """
        known = self._value(operation, argument) or self._container(operation) or self._object(operation, argument)
        if not known:
            raise Refused(f"its pickled part uses the operation {operation}, which files of tensors do not need")

    def _value(self, operation: str, argument: Any) -> bool:
        """Executes an operation on single values; returns whether it is one."""
        stack, memo = self.stack, self.memo
        if operation in ("PROTO", "FRAME"):
            pass
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _LITERALS:
            stack.append(argument)
        elif operation in _PUTS:
            memo[argument] = stack[-1]
        elif operation == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif operation in _GETS:
            stack.append(memo[argument])
        elif operation == "MARK":
            stack.append(_MARK)
        else:
            return False
        return True

    def _container(self, operation: str) -> bool:
        """Executes an operation on tuples, lists and dictionaries; returns whether it is one."""
        stack = self.stack
        if operation in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[operation])
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif operation == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif operation in ("APPEND", "APPENDS"):
            added = [stack.pop()] if operation == "APPEND" else _since_mark(stack)
            _a(list, stack[-1]).extend(added)
        elif operation in ("SETITEM", "SETITEMS"):
            added = [stack.pop(-2), stack.pop()] if operation == "SETITEM" else _since_mark(stack)
            target = _a(dict, stack[-1])
            for key, value in zip(added[::2], added[1::2], strict=True):
                # Keys must be cheap to hash: nested tuples can be built so that hashing does not end in practice.
                if not isinstance(key, (str, int, Record)):
                    raise Refused(f"its pickled part contains a key of type {type(key).__name__}")
                target[key] = value
        else:
            return False
        return True

    def _object(self, operation: str, argument: Any) -> bool:
        """Executes an operation on named objects; returns whether it is one."""
        stack = self.stack
        if operation in ("GLOBAL", "STACK_GLOBAL"):
            if operation == "GLOBAL":
                name = argument.replace(" ", ".", 1)
            else:
                last, module = _a(str, stack.pop()), _a(str, stack.pop())
                name = f"{module}.{last}"
            if name not in self.names:
                raise Refused(f"its pickled part names {name[:120]!r}, which files of tensors do not need")
            stack.append(self.names[name])
        elif operation in ("REDUCE", "NEWOBJ"):
            arguments, function = _a(tuple, stack.pop()), _a(StandIn, stack.pop())
            if function.build is None:
                raise Refused(f"its pickled part calls {function.name!r}")
            stack.append(function.build(*arguments))
        elif operation == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Record):
                target.state = state
            elif not isinstance(target, dict):  # attributes of a dictionary (module versions) are ignored
                raise Refused(f"its pickled part sets the state of a {type(target).__name__}")
        elif operation == "BINPERSID":
            if self.persistent is None:
                raise Refused("its pickled part refers to a storage where none can be")
            stack.append(self.persistent(stack.pop()))
        else:
            return False
        return True


def _since_mark(stack: list[Any]) -> list[Any]:
    """Pops the values above the topmost mark, and the mark."""
    index = len(stack) - 1
    while stack[index] is not _MARK:
        index -= 1
        if index < 0:
            raise IndexError
    values = stack[index + 1 :]
    del stack[index:]
    return values


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
