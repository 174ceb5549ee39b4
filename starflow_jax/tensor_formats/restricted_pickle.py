"""A safe reader for pickles: a small stack machine that builds plain values and runs no code chosen by the file.

Python's unpickler imports and calls the objects that a file names. This reader looks names up in a fixed table of
stand-ins. Every other name becomes a placeholder, and so does what the file builds from it: calls are not made, and
states and members that are given to it are dropped. The standard library's disassembler, which executes nothing, parses
the operations. Time and memory grow linearly with the pickle, whose length and number of operations are limited.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from starflow_jax.tensor_formats.pickle_values import Placeholder, Record, Refused, StandIn, key_of, result_of

__all__ = ["MAX_BYTES", "Placeholder", "Record", "Refused", "StandIn", "load"]

# The pickle contains the structure of a file, not its values: less than a megabyte for the released models.
MAX_BYTES = 2**25
MAX_OBJECTS = 2**20  # lists, dictionaries, tuples, objects, of which a tensor takes a few
_MAX_ARGUMENTS = 32  # of a call that is made
_MAX_NAME = 200  # characters of a name that are kept

_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_OBJECTS = {
    "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET",
    "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "GLOBAL", "STACK_GLOBAL",
}  # fmt: skip
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(
    stream: IO[bytes],
    names: Mapping[str, StandIn],
    persistent: Callable[[Any], Any] | None = None,
    *,
    integer_bits: int = 64,
    max_objects: int = MAX_OBJECTS,
) -> Any:
    """Reads the pickle at the stream's position and leaves the stream at its end.

    Args:
      stream: the stream to read from.
      names: the names that have a meaning, "module.name" to stand-in.
      persistent: returns the value of a persistent id (a storage, in files of tensors).
      integer_bits: wider integers become placeholders, so that no arithmetic with them takes time.
      max_objects: bounds the number of objects, and with it time and memory.

    Returns:
      None, numbers, strings, bytes, lists, tuples, dictionaries, records, placeholders, and what the stand-ins build.
      Lists and dictionaries may contain themselves. Keys that are not cheap to hash are wrapped in `Key`.

    Raises:
      Refused: an operation is not supported, or the data is not a pickle, or a very long one.
    """
    machine = _Machine(names, persistent, 2 ** (integer_bits - 1))
    try:
        for operation, argument in _operations(stream, max_objects):
            if operation == "STOP":
                (value,) = machine.stack
                return value
            machine.execute(operation, argument)
    except Refused:
        raise
    except (
        IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, MemoryError, RecursionError
    ) as error:  # fmt: skip
        raise Refused("its pickled part is damaged") from error
    raise Refused("its pickled part has no end")


def _operations(stream: IO[bytes], max_objects: int) -> Iterator[tuple[str, Any]]:
    start, objects = stream.tell(), 0
    for number, (operation, argument, position) in enumerate(pickletools.genops(stream)):
        if position is not None and position - start > MAX_BYTES:
            raise Refused(f"its pickled part is longer than {MAX_BYTES} bytes")
        objects += operation.name in _OBJECTS
        if objects > max_objects or number > 4 * max_objects:
            raise Refused(f"its pickled part has more than {max_objects} objects, or {4 * max_objects} operations")
        yield operation.name, argument


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, names: Mapping[str, StandIn], persistent: Callable[[Any], Any] | None, bound: int):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names, self.persistent, self.bound = names, persistent, bound
        self.others: dict[str, Placeholder] = {}  # a name is one object, however often a file refers to it

    def execute(self, operation: str, argument: Any) -> None:
        stack = self.stack
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _PUTS:
            if stack[-1] is _MARK:
                raise TypeError
            self.memo[len(self.memo) if operation == "MEMOIZE" else argument] = stack[-1]
        elif operation in _GETS:
            stack.append(self.memo[argument])
        elif operation in _INTEGERS:
            stack.append(self.integer(argument))
        elif operation == "MARK":
            stack.append(_MARK)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif operation in ("GLOBAL", "STACK_GLOBAL"):
            self.name(operation, argument)
        elif operation in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"):
            self.call(operation, argument)
        elif operation in ("BINPERSID", "PERSID"):
            if self.persistent is None:
                raise Refused("its pickled part refers to a storage where none can be")
            stack.append(self.persistent(stack.pop() if operation == "BINPERSID" else argument))
        elif operation not in ("PROTO", "FRAME"):
            self.collect(operation)

    def collect(self, operation: str) -> None:
        """Operations on lists, dictionaries, sets and states, and the removal of values."""
        stack = self.stack
        if operation == "EMPTY_LIST":
            stack.append([])
        elif operation == "EMPTY_DICT":
            stack.append({})
        elif operation == "EMPTY_SET":
            stack.append(Placeholder("set", is_plain=True))
        elif operation == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif operation == "LIST":
            stack.append(self.since_mark())
        elif operation == "DICT":
            items = self.since_mark()
            stack.append({})
            _set(stack[-1], items)
        elif operation == "FROZENSET":
            self.since_mark()
            stack.append(Placeholder("frozenset", is_plain=True))
        elif operation in ("APPEND", "APPENDS", "ADDITEMS"):
            added = [stack.pop()] if operation == "APPEND" else self.since_mark()
            if not isinstance(stack[-1], Placeholder):
                _a(list, stack[-1]).extend(added)
        elif operation in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if operation == "SETITEM" else self.since_mark()
            if not isinstance(stack[-1], Placeholder):
                _set(_a(dict, stack[-1]), items)
        elif operation == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, Record):
                target.state = state
            elif not isinstance(target, (dict, list, Placeholder)):  # whose attributes are ignored
                raise Refused(f"its pickled part sets the state of a {type(target).__name__}")
        elif operation == "POP":
            stack.pop()
        elif operation == "POP_MARK":
            self.since_mark()
        elif operation == "DUP":
            stack.append(stack[-1])
        else:
            raise Refused(f"its pickled part uses the operation {operation}, which files of tensors do not need")

    def integer(self, value: int) -> Any:
        if -self.bound <= value < 2 * self.bound:
            return value
        return Placeholder(f"an integer of {(value.bit_length() + 7) // 8} bytes", is_plain=True)

    def name(self, operation: str, argument: Any) -> None:
        if operation == "STACK_GLOBAL":
            last, module = _a(str, self.stack.pop()), _a(str, self.stack.pop())
            argument = f"{module} {last}"
        self.stack.append(self.named(argument))

    def named(self, argument: str) -> StandIn | Placeholder:
        name = argument.replace(" ", ".", 1)
        if name in self.names:
            return self.names[name]
        return self.others.setdefault(name[:_MAX_NAME], Placeholder(name[:_MAX_NAME]))

    def call(self, operation: str, argument: Any) -> None:
        """Builds the value of a call of a stand-in; a call of anything else is not made."""
        stack, options = self.stack, None
        if operation == "INST":
            arguments: Any = tuple(self.since_mark())
            function: Any = self.named(argument)
        elif operation == "OBJ":
            function, *rest = self.since_mark()
            arguments = tuple(rest)
        else:
            options = stack.pop() if operation == "NEWOBJ_EX" else None
            arguments, function = stack.pop(), stack.pop()
        if not isinstance(function, (StandIn, Placeholder)) or not isinstance(arguments, (tuple, Placeholder)):
            raise TypeError
        if function.is_plain:
            stack.append(Placeholder(function.name, is_plain=True))
        elif (
            isinstance(function, Placeholder) or function.build is None or options or isinstance(arguments, Placeholder)
        ):
            stack.append(result_of(function, arguments))
        elif len(arguments) > _MAX_ARGUMENTS:
            raise TypeError
        else:
            stack.append(function.build(*arguments))

    def since_mark(self) -> list[Any]:
        """Pops the values above the topmost mark, and the mark."""
        stack = self.stack
        index = len(stack) - 1
        while stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise IndexError
        values = stack[index + 1 :]
        del stack[index:]
        return values


def _set(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key_of(key)] = value


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
