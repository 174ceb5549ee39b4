"""Collectives of a compiled program: which arrays are moved, between which devices, and how often.

    for collective in collectives(compiled.as_text()):
        print(collective.kind, collective.shape, mesh_axes(collective, {"fsdp": 4, "tensor": 2}), collective.times)

The parser handles the forms that XLA's CPU, GPU and TPU compilers emit: plain operations, start/done pairs,
computations started asynchronously (on a TPU's SparseCores), and the TPU compiler's fusions (a reduce-scatter written
as an all-reduce in a fusion of that name, and collectives spread over the fusions that they overlap with). Between
slices of TPUs, data is sent by the hosts; the text of such a program is that of one slice.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from starflow_jax.planning.hlo import Array, Instruction, Program, parse

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# The types of transfers between slices, as the TPU compiler names them.
_BETWEEN_SLICES: dict[str, Kind] = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}

# What the compiler for GPUs writes beside its collectives, and beside its own kernels of products.
_OF_GPUS, _GPU_PRODUCT = '"collective_backend_config"', "gemm_fusion"

_PASSED_ON = ("convert", "bitcast", "copy", "transpose", "reshape", "get-tuple-element")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array moved by one collective operation; an operation on several arrays gives one `Collective` per array.

    Attributes:
      kind: the type of collective.
      bytes: size of the full array of a group: the output of an all-gather, the input of a reduce-scatter, the array
        itself for an all-reduce; for the other kinds, the array on one device.
      shape, dtype: shape and dtype of that array.
      groups: devices of each group, as indices in mesh order, of every slice the same where a program has slices; empty
        if the text names none (all devices of a slice). For a collective-permute, pairs of source and target.
      group_size: number of devices in a group; 2 for a collective-permute.
      times: how often it runs in one call of the program (see `hlo.Program.times`).
      computation, name: its computation and instruction name.
      source: the operation of the traced program that it comes from ("" if unknown).
      overlapped: whether the compiler overlaps it with other work (a start/done pair, or spread over fusions).
      sliced: for an all-reduce, whether every use reads one device's slice only, so that a reduce-scatter would do.
    """

    kind: Kind
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    groups: tuple[tuple[int, ...], ...]
    group_size: int
    times: int
    computation: str
    name: str
    source: str = ""
    overlapped: bool = False
    sliced: bool = False

    @property
    def sent(self) -> float:
        """Bytes that one device sends per run with ring algorithms; an all-to-all sends all but its own part."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        share = self.bytes * (self.group_size - 1) / max(self.group_size, 1)
        return 2 * share if self.kind == "all-reduce" else share


def collectives(hlo_text: str) -> list[Collective]:
    """Lists the collectives of a compiled program in the order of its text, without groups of one device.

    Raises:
      ValueError: the text is not an HLO program, or device groups have an unknown form.
    """
    program = parse(hlo_text)
    devices = re.search(r"num_partitions=(\d+)", hlo_text)
    return list(_iterate_collectives(program, int(devices.group(1)) if devices else 1))


def mesh_axes(collective: Collective, sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """Returns the mesh axes that a collective runs along, or None if its groups are not whole axes.

    Args:
      collective: a collective of a program compiled for that mesh.
      sizes: number of devices along each axis, in mesh order.
    """
    shape = tuple(sizes.values())
    count = int(np.prod(shape))
    if any(device >= count for group in collective.groups for device in group):
        return None
    groups = collective.groups or (tuple(range(collective.group_size)),)
    along: set[int] = set()
    for group in groups:
        coordinates = np.stack(np.unravel_index(np.asarray(group), shape))
        along |= {axis for axis in range(len(shape)) if np.unique(coordinates[axis]).size > 1}
    product = int(np.prod([shape[axis] for axis in along], dtype=int))
    if collective.kind != "collective-permute" and product != collective.group_size:
        return None
    return tuple(name for axis, name in enumerate(sizes) if axis in along)


def replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Parses the device groups in the attributes of an operation; () if there are none.

    Forms: `{{0,1},{2,3}}`, `[2,4]<=[8]`, `[4,2]<=[2,4]T(1,0)`, and `mesh['a'=4,'b'=2] {'a'}` with optional
    `device_ids=([2,4]T(1,0))` and parts of axes, `'a':(2)2`.

    Args:
      text: the attributes.

    Raises:
      ValueError: the groups have an unknown form.
    """
    start = text.find("replica_groups=")
    if start < 0:
        return ()
    text = text[start + len("replica_groups=") :]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    listed = re.match(r"\{((?:\{[\d,]*\},?)*)\}", text)
    if listed:
        matches = re.findall(r"\{([\d,]+)\}", listed.group(1))
        return tuple(tuple(int(i) for i in group.split(",")) for group in matches)
    iota = re.match(r"\[(\d+),(\d+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if iota:
        return _rows(_iota(iota.group(3).removeprefix("<=")).reshape(int(iota.group(1)), int(iota.group(2))))
    raise ValueError(f"replica_groups must be lists, an iota or a mesh, got {text[:80]!r}")


def _rows(table: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in table)


def _iota(text: str) -> np.ndarray:
    """Evaluates `[4,2]T(1,0)`: 0, 1, 2, ... reshaped, transposed and flattened."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match is not None  # the caller has matched the pattern
    shape = [int(size) for size in match.group(1).split(",")]
    table = np.arange(int(np.prod(shape))).reshape(shape)
    if match.group(2):
        table = table.transpose([int(axis) for axis in match.group(2).split(",")])
    return table.reshape(-1)


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    match = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? ?\{([^}]*)\}", text)
    if match is None:
        raise ValueError(f"replica_groups must be lists, an iota or a mesh, got {text[:80]!r}")
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match.group(1))}
    count = int(np.prod(list(axes.values()), dtype=int))
    order = np.arange(count)
    if match.group(2):
        listed = match.group(2)
        order = _iota(listed) if listed.startswith("[") else np.asarray([int(i) for i in re.findall(r"\d+", listed)])
    # For a part of an axis, 'a':(before)size, the factors before and after it are not part of the group.
    shape: list[int] = []
    within: list[int] = []
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match.group(3))
    for name, size in axes.items():
        done = 1
        for before, part in sorted((int(b or 1), int(p or size)) for named, b, p in parts if named == name):
            shape += [before // done, part]
            within.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    outside = [axis for axis in range(len(shape)) if axis not in within]
    members = int(np.prod([shape[axis] for axis in within], dtype=int))
    return _rows(order.reshape(shape).transpose([*outside, *within]).reshape(-1, members))


def _iterate_collectives(program: Program, devices: int) -> Iterator[Collective]:
    times = program.times()
    started, callers = _started(program), program.callers()
    for computation, lines in program.computations.items():
        if not times.get(computation):
            continue
        scattering = "reduce-scatter" in computation or "all-reduce-scatter" in computation
        chained = any("AsyncCollective" in i.attributes for i in lines.values()) or computation.startswith("async_coll")
        asynchronous = computation in callers and callers[computation][1].opcode.endswith("-start")
        starts = any("AsyncCollectiveStart" in i.attributes for i in lines.values())
        for instruction in lines.values():
            if instruction.opcode == "send":
                yield from _between_slices(instruction, lines, devices, times[computation], computation)
            kind = _kind(instruction.opcode)
            if kind is None:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if chained and not starts and channel and channel.group(1) in started:
                continue  # a later part of the same transfer
            yield from _parse_collective(
                instruction,
                "reduce-scatter" if scattering and kind == "all-reduce" else kind,
                devices,
                times[computation],
                computation,
                overlapped=chained or asynchronous or _is_beside_work(instruction, lines),
                sliced=kind == "all-reduce" and not scattering and _is_sliced(program, lines, instruction.name),
            )


def _between_slices(
    send: Instruction, lines: Mapping[str, Instruction], devices: int, times: int, computation: str
) -> Iterator[Collective]:
    """The transfer between slices that a host sends; none for other transfers to a host.

    Every device exchanges its array with those at the same place in the other slices. It overlaps with the products
    that are scheduled before its end.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    members = re.search(r'_xla_megascale_target="\{([\d,]+)\}x', send.attributes)
    if kind is None or members is None or kind.group(1) not in _BETWEEN_SLICES:
        return
    slices, array = members.group(1).count(",") + 1, send.arrays[0]
    shape = (slices, *array.shape) if kind.group(1) == "ALL_GATHER" else array.shape
    rendezvous = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', send.attributes)
    names = list(lines)
    ends = [i for i, line in enumerate(lines.values()) if line.opcode == "send-done" and send.name in line.operands]
    beside = [lines[name].opcode for name in names[names.index(send.name) : ends[0] if ends else None]]
    yield Collective(
        _BETWEEN_SLICES[kind.group(1)],
        Array(array.dtype, shape).bytes,
        shape,
        array.dtype,
        tuple(tuple(range(place, devices * slices, devices)) for place in range(devices)),
        slices,
        times,
        computation,
        send.name,
        rendezvous.group(1) if rendezvous else "",
        overlapped="fusion" in beside or "custom-call" in beside or "while" in beside,
    )


def _is_beside_work(instruction: Instruction, lines: Mapping[str, Instruction]) -> bool:
    """Whether a collective is started and ended apart; on a GPU, with a product or a loop scheduled in between.

    The compiler for GPUs starts and ends every collective apart, also those that have nothing beside them.
    """
    if not instruction.opcode.endswith("-start"):
        return False
    if _OF_GPUS not in instruction.attributes:
        return True
    names = list(lines)
    start = names.index(instruction.name) + 1
    for name in names[start:]:
        line = lines[name]
        if instruction.name in line.operands:
            return False
        if line.opcode in ("custom-call", "while") or _GPU_PRODUCT in line.attributes:
            return True
    return False


def _kind(opcode: str) -> Kind | None:
    return next((kind for kind in KINDS if opcode in (kind, f"{kind}-start")), None)


def _started(program: Program) -> set[str]:
    """Channels of the collectives that are started by a separate fusion."""
    channels = set()
    for lines in program.computations.values():
        if any("AsyncCollectiveStart" in i.attributes for i in lines.values()):
            for instruction in lines.values():
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                if channel and _kind(instruction.opcode):
                    channels.add(channel.group(1))
    return channels


def _parse_collective(
    instruction: Instruction, kind: Kind, devices: int, times: int, computation: str, **flags: bool
) -> Iterator[Collective]:
    groups: tuple[tuple[int, ...], ...]
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", instruction.attributes)
        matches = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1)) if pairs else []
        groups = tuple((int(source), int(target)) for source, target in matches)
        size = 2 if any(len(set(pair)) > 1 for pair in groups) else 1
    else:
        groups = replica_groups(instruction.attributes)
        size = len(groups[0]) if groups else devices
    if size < 2:
        return
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    for array in _payload(instruction, kind, size):
        yield Collective(
            kind,
            array.bytes,
            array.shape,
            array.dtype,
            groups,
            size,
            times,
            computation,
            instruction.name,
            source.group(1) if source else "",
            **flags,
        )


def _payload(instruction: Instruction, kind: Kind, size: int) -> tuple[Array, ...]:
    """The arrays in the sense of `Collective.shape`."""
    arrays = instruction.arrays
    operands = len(instruction.operands)
    if instruction.opcode.endswith("-start") and kind != "all-reduce" and len(arrays) >= 2 * operands:
        arrays = arrays[operands : 2 * operands]  # the tuple holds inputs, outputs, flags
    if kind == "all-to-all" and len(arrays) == size > 1:
        # One part per partner; together the parts are one array.
        return (Array(arrays[0].dtype, (size, *arrays[0].shape)),)
    if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
        dimension = re.search(r"dimensions=\{(\d+)\}", instruction.attributes)
        axis = int(dimension.group(1)) if dimension else 0
        return tuple(Array(a.dtype, tuple(n * size if i == axis else n for i, n in enumerate(a.shape))) for a in arrays)
    return arrays


def _is_sliced(program: Program, lines: Mapping[str, Instruction], name: str) -> bool:
    """Whether every use of a value, through copies and fusions, is the operand of a dynamic slice."""
    users = [i for i in lines.values() if name in i.operands]
    return bool(users) and all(_slices(program, lines, user, name) for user in users)


def _slices(program: Program, lines: Mapping[str, Instruction], user: Instruction, name: str) -> bool:
    if user.opcode == "dynamic-slice":
        return user.operands[0] == name
    if user.opcode in _PASSED_ON or user.opcode in ("all-reduce-start", "all-reduce-done"):
        return not user.root and _is_sliced(program, lines, user.name)
    if user.opcode == "fusion":
        inner = program.computations.get(user.computation("calls") or "", {})
        parameters = [i for i in inner.values() if i.opcode == "parameter" and user.operands[int(i.literal)] == name]
        return bool(parameters) and all(_is_sliced(program, inner, parameter.name) for parameter in parameters)
    return False
