"""Compiled programs as text (HLO): computations, instructions, and how often each of them runs.

The text comes from `jax.stages.Compiled.as_text()` on any platform. Only what the planner needs is parsed: types,
operands, called computations and the trip counts of counted loops.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\) -> .*\{$")
# Other lines that begin with a brace continue the attributes of the previous instruction.
_END = re.compile(r"^\}(, execution_thread=.*)?\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.$-]+)")
# Operations whose called computation runs as part of them, inline or asynchronously.
WITHIN = ("fusion", "async-start", "call-start")

_SAME_VALUE = ("copy", "bitcast", "convert", "reshape")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array type: HLO dtype name, shape on one device, and memory space (0: main memory)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Size in bytes without padding; 0 for tokens and other types without data."""
        return math.ceil(BYTES.get(self.dtype, 0) * math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode, operands: as in the text; operands are names in the same computation.
      arrays: array types of the result; for a tuple, those of its elements in order.
      literal: the text between the parentheses (a constant's value).
      attributes: the text after the parentheses.
    """

    name: str
    opcode: str
    operands: tuple[str, ...]
    arrays: tuple[Array, ...]
    literal: str
    attributes: str
    root: bool

    @property
    def callee(self) -> str | None:
        """The computation that a fusion or a call runs, synchronously or asynchronously."""
        return self.computation("to_apply" if self.opcode in ("call", "call-start") else "calls")

    def computation(self, attribute: str) -> str | None:
        """The computation named by an attribute (`calls`, `body`, `condition`, `to_apply`), or None."""
        match = re.search(rf"\b{attribute}=%?([\w.$-]+)", self.attributes)
        return match.group(1) if match else None


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a dictionary of its instructions in schedule order."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def times(self) -> dict[str, int]:
        """How often each reachable computation runs in one call of the program.

        A loop body counts its trip count if the text determines it, and once otherwise, that is, if the loop ends on
        a condition on its data or at a bound given at run time. Every branch of a conditional is counted.
        """
        times: dict[str, int] = {}
        for name in reversed(self._callees_first()):
            times.setdefault(name, 1 if name == self.entry else 0)
            for callee, turns in self._calls(name):
                times[callee] = times.get(callee, 0) + times[name] * turns
        return times

    def inside_loops(self) -> set[str]:
        """The computations that run inside the body of a loop, directly or through what it calls, loops included."""
        found: set[str] = set()
        pending = [
            instruction.computation("body")
            for lines in self.computations.values()
            for instruction in lines.values()
            if instruction.opcode == "while"
        ]
        while pending:
            name = pending.pop()
            if name is not None and name not in found and name in self.computations:
                found.add(name)
                pending.extend(callee for callee, _ in self._calls(name))
        return found

    def callers(self) -> dict[str, tuple[str, Instruction]]:
        """Maps each computation that is part of an operation (`WITHIN`) to its caller and the operation."""
        return {
            instruction.callee: (name, instruction)
            for name, lines in self.computations.items()
            for instruction in lines.values()
            if instruction.opcode in WITHIN and instruction.callee
        }

    def _callees_first(self) -> list[str]:
        order: list[str] = []
        visited: set[str] = set()
        stack = [(self.entry, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in visited:
                visited.add(name)
                stack.append((name, True))
                stack.extend((callee, False) for callee, _ in self._calls(name))
        return order

    def _calls(self, name: str) -> Iterator[tuple[str, int]]:
        for instruction in self.computations[name].values():
            for callee, turns in self._called(instruction, name):
                if callee in self.computations:
                    yield callee, turns

    def _called(self, instruction: Instruction, caller: str) -> Iterator[tuple[str, int]]:
        if instruction.opcode == "while":
            turns = self.turns(instruction, caller) or 1
            for attribute in ("body", "condition"):
                callee = instruction.computation(attribute)
                if callee:
                    yield callee, turns
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            if branches:
                yield from ((callee, 1) for callee in _NAME.findall(branches.group(1)))
            for attribute in ("true_computation", "false_computation"):
                callee = instruction.computation(attribute)
                if callee:
                    yield callee, 1
        elif instruction.opcode in (*WITHIN, "call"):
            callee = instruction.callee
            if callee:
                yield callee, 1

    def turns(self, loop: Instruction, caller: str) -> int | None:
        """Trip count of a `while`, or None if it is known only at run time."""
        trips = _TRIPS.search(loop.attributes)
        if trips:
            return int(trips.group(1))
        condition = self.computations.get(loop.computation("condition") or "", {})
        root = next((i for i in condition.values() if i.root), None)
        if root is None or root.opcode not in ("compare", "fusion"):
            return None
        limits = [i for i in condition.values() if i.opcode == "constant"]
        counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
        if root.opcode == "fusion":  # the comparison alone, or with its constants
            inner = self.computations.get(root.computation("calls") or "", {})
            if not any(i.root and i.opcode == "compare" for i in inner.values()):
                return None
            limits += [i for i in inner.values() if i.opcode == "constant"]
        if len(limits) != 1 or len(counters) != 1 or not re.fullmatch(r"-?\d+", limits[0].literal):
            return None
        match = re.search(r"index=(\d+)", counters[0].attributes)
        index = int(match.group(1)) if match else 0
        span = int(limits[0].literal) - self._start(loop, caller, index)
        return max(-(-span // self._stride(loop, index)), 0)

    def _start(self, loop: Instruction, caller: str, index: int) -> int:
        """Initial value of element `index` of a loop's carry; 0 if it is not a constant."""
        lines = self.computations[caller]
        carry = lines.get(loop.operands[0]) if loop.operands else None
        value = _constant(lines, carry.operands[index]) if carry is not None and carry.opcode == "tuple" else None
        return value or 0

    def _stride(self, loop: Instruction, index: int) -> int:
        """Increment of element `index` of the carry per iteration; 1 if it cannot be parsed."""
        body = self.computations.get(loop.computation("body") or "", {})
        carry = next((i for i in body.values() if i.root), None)
        if carry is None or carry.opcode != "tuple":
            return 1
        new = body.get(carry.operands[index])
        while new is not None and new.opcode in _SAME_VALUE:
            new = body.get(new.operands[0])
        if new is None or new.opcode != "add":
            return 1
        added = [value for value in (_constant(body, name) for name in new.operands) if value is not None]
        return added[0] if len(added) == 1 and added[0] > 0 else 1


def parse(text: str) -> Program:
    """Parses an HLO text.

    Raises:
      ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif _END.match(line):
            lines = None
        elif lines is not None:
            instruction = _instruction(line)
            if instruction is not None:
                lines[instruction.name] = instruction
    if not entry:
        raise ValueError("the text must be a compiled HLO program with an ENTRY computation, and has none")
    return Program(computations, entry)


def _constant(lines: Mapping[str, Instruction], name: str) -> int | None:
    """The value of an integer constant by name; None if the name is not a constant."""
    value = lines.get(name)
    while value is not None and value.opcode in _SAME_VALUE:
        value = lines.get(value.operands[0])
    if value is None or value.opcode != "constant" or not re.fullmatch(r"-?\d+", value.literal):
        return None
    return int(value.literal)


def arrays(type_text: str) -> tuple[Array, ...]:
    """Parses the arrays of an HLO type such as `f32[8,4]{1,0}`, or of a tuple of such types."""
    result = []
    for dtype, shape, layout in _ARRAY.findall(type_text):
        space = _SPACE.search(layout)
        result.append(Array(dtype, _shape(shape), int(space.group(1)) if space else 0))
    return tuple(result)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",")) if text else ()


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opening = rest.find("(", end)
    if end <= 0 or opening < 0:
        return None
    closing = _closing(rest, opening)
    operands_text = rest[opening + 1 : closing]
    return Instruction(
        head.group(2),
        rest[end:opening].strip(),
        tuple(_NAME.findall(operands_text)),
        arrays(rest[:end]),
        operands_text,
        rest[closing + 1 :],
        bool(head.group(1)),
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.finditer(r"[()]", text[opening:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return opening + match.start()
    return len(text) - 1
