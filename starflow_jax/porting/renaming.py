"""Tensors of a file by the names of a table, and the tensors of a model as such a file has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starflow_jax.porting.name_table import NameTable, TableEntry, Values
from starflow_jax.porting.tensor_names import Entry
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, counted

_MOST = 6  # names that a sentence lists


@dataclass(frozen=True)
class Renamed:
    """The tensors of one state of a file by the names of this project; no values have been read.

    Attributes:
      tensors: by name; count: how many of them a table names.
      rows: of each part of a tensor that is concatenated of several, by the tensor's name.
      ignored: names in the file of tensors that nothing reads.
      unread: objects of the file that are not read, with the names of this project as their paths where a table has
        them.
      num_left_out: number of tensors in the file outside of the state.
    """

    tensors: Mapping[str, LazyTensor]
    count: int
    rows: Mapping[str, tuple[int, ...]]
    ignored: tuple[str, ...]
    unread: tuple[LeftAside, ...]
    num_left_out: int


def renamed(
    table: NameTable, tensors: Mapping[str, LazyTensor], state: str | None = None, left_aside: Sequence[LeftAside] = ()
) -> Renamed:
    """Gives the tensors of a file the names of this project. Those that the table does not mention keep their names.

    Args:
      table: the names.
      tensors: of the file.
      state: what the names of the wanted tensors begin with, such as "model" or "model.module"; the table has the names
        without it. None: the whole file.
      left_aside: the objects of the file that are not read.

    Raises:
      ValueError: no name begins with `state`; an entry of the table matches nothing in the file, or a part of one is
        missing; a tensor is taken or given twice, or both taken and ignored; parts do not make one tensor.
    """
    start = "" if state is None else f"{state}."
    held = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if not tensors:
        raise ValueError(f"the file contains no tensors{_aside(left_aside)}")
    if not held:
        keys = ", ".join(sorted({repr(name.split(".")[0]) for name in tensors})[:_MOST]) or "none"
        raise ValueError(f"--weights must be what names of the file begin with, such as {keys}, got {state!r}")
    given: dict[str, tuple[TableEntry, Values]] = {}
    taken: set[str] = set()
    for file_name in held:
        use = table.use_of(file_name)
        if use is None:
            continue
        if table.ignores(file_name):
            raise ValueError(f"{table.path} both takes and ignores the tensor {file_name} of the file")
        entry, _, values = use
        name = entry.name.filled(values)
        table.entry_of(name)
        given[name] = entry, values
        taken.add(file_name)
    _check_found(table, given, held, left_aside)
    rest = [name for name in held if name not in taken]
    kept = {name: held[name] for name in rest if not table.ignores(name)}
    if twice := [name for name in kept if name in given]:
        raise ValueError(
            f"{table.path} gives {twice[0]} another tensor of the file, which has one of this name already"
        )
    made = {name: _joined(name, *one, held) for name, one in given.items()}
    rows = {
        name: tuple(_shape(held[part], entry)[0] for part in entry.part_names(values))
        for name, (entry, values) in given.items()
        if len(entry.parts) > 1
    }
    unread = [_named(table, one, start) for one in left_aside if one.path.startswith(start)]
    ignored = tuple(sorted(name for name in rest if name not in kept))
    return Renamed(made | kept, len(made), rows, ignored, tuple(unread), len(tensors) - len(held))


def _check_found(
    table: NameTable,
    given: Mapping[str, tuple[TableEntry, Values]],
    held: Mapping[str, LazyTensor],
    left_aside: Sequence[LeftAside],
) -> None:
    """Raises ValueError for entries that match nothing, and for parts that are missing."""
    aside = _aside(left_aside)
    used = {entry.name.text for entry, _ in given.values()}
    if unused := [entry for entry in table.entries if entry.name.text not in used]:
        names = _some([", ".join(part.text for part in entry.parts) for entry in unused])
        first = next(iter(held))
        raise ValueError(
            f"{table.path} names tensors that the file does not have: {names}; the first one in the file is {first}"
            f"{aside}"
        )
    missing = [part for entry, values in given.values() for part in entry.part_names(values) if part not in held]
    if missing:
        raise ValueError(f"{table.path} names parts of tensors that the file does not have: {_some(missing)}{aside}")


def _aside(left_aside: Sequence[LeftAside]) -> str:
    return f"; the file contains {counted(left_aside)}" if left_aside else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST]) + (f", and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _shape(tensor: LazyTensor, entry: TableEntry) -> tuple[int, ...]:
    return tensor.shape[::-1] if entry.transpose else tensor.shape


def _joined(name: str, entry: TableEntry, values: Values, held: Mapping[str, LazyTensor]) -> LazyTensor:
    """A tensor of this project, made of tensors of the file when it is read."""
    names = entry.part_names(values)
    parts = [held[part] for part in names]
    if entry.transpose and (other := [part for part in names if len(held[part].shape) != 2]):
        raise ValueError(f"{other[0]} must have 2 axes to be transposed, got shape {held[other[0]].shape}")
    if len(parts) == 1 and not entry.transpose:
        return parts[0]
    shapes = [_shape(part, entry) for part in parts]
    if not shapes[0] or len({(shape[1:], part.dtype) for shape, part in zip(shapes, parts, strict=True)}) > 1:
        found = ", ".join(f"{part} {held[part].dtype.name} {held[part].shape}" for part in names)
        raise ValueError(f"the parts of {name} must agree in dtype and in all axes but the first, got {found}")

    def load() -> np.ndarray:
        read = [part.read() for part in parts]
        return np.concatenate([value.T for value in read] if entry.transpose else read)

    return LazyTensor((sum(shape[0] for shape in shapes), *shapes[0][1:]), parts[0].dtype, load)


def _named(table: NameTable, one: LeftAside, start: str) -> LeftAside:
    """An object that is not read, at the name of this project of the tensor that should be in its place."""
    path = one.path.removeprefix(start)
    use = table.use_of(path)
    return LeftAside(path if use is None else use[0].name.filled(use[2]), one.name)


def check_rows(table: NameTable, rows: Mapping[str, tuple[int, ...]], entries: Sequence[Entry]) -> None:
    """Checks that tensors of several parts have them where `written_as` cuts.

    Args:
      table: the names; rows: `Renamed.rows`; entries: all tensors of the model.

    Raises:
      ValueError: parts of other sizes; a tensor that does not have the rows of the model is left to the report.
    """
    for entry in entries:
        found = rows.get(entry.name)
        if found is not None and sum(found) == entry.torch_shape[0]:
            expected = _rows(entry, len(found), table)
            if found != expected:
                raise ValueError(
                    f"the parts of {entry.name} must have {_counts(expected)} rows, got {_counts(found)}: "
                    f"{table.file_names(entry.name)}"
                )


def _counts(rows: Sequence[int]) -> str:
    return " + ".join(map(str, rows))


def _rows(entry: Entry, parts: int, table: NameTable) -> tuple[int, ...]:
    """The rows of the parts of a tensor: queries, keys and values, or equal parts."""
    if parts == 1:
        return entry.torch_shape[:1]
    packed = entry.packed_rows
    if packed is not None:
        if parts != len(packed):
            raise ValueError(
                f"{table.path} must divide {entry.name} into queries, keys and values, of {_counts(packed)} rows, "
                f"got {parts} parts"
            )
        return packed
    rows = entry.torch_shape[0] if entry.torch_shape else 0
    if rows % parts:
        raise ValueError(f"{table.path} divides {entry.name} into {parts} parts, which must be equal, got {rows} rows")
    return (rows // parts,) * parts


@dataclass(frozen=True)
class FileTensor:
    """A tensor to write: its name in the file, its shape there and its dtype (`tensor_writing.TensorSpec`)."""

    name: str
    torch_shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Written:
    """A tensor of the model as a file of another implementation has it.

    Attributes:
      parts: the tensors of the file.
      rows: of each part in the tensor of the model; transpose: whether parts are transposed.
      named: whether a table names it.
    """

    parts: tuple[FileTensor, ...]
    rows: tuple[int, ...]
    transpose: bool
    named: bool

    def pieces(self, value: np.ndarray) -> Iterator[np.ndarray]:
        """The parts of the tensor of the model, one by one."""
        if len(self.parts) == 1:
            yield value.T if self.transpose else value
            return
        start = 0
        for rows in self.rows:
            piece = value[start : start + rows]
            start += rows
            yield piece.T if self.transpose else piece


def written_as(table: NameTable | None, entries: Sequence[Entry]) -> list[Written]:
    """The tensors of a model as a file of another implementation has them, in the order of `entries`.

    Args:
      table: the names; None for those of this project.
      entries: all tensors of the model.

    Raises:
      ValueError: an entry of the table names no tensor of the model, or two give one tensor of the model or of the
        file; a tensor that cannot be divided or transposed.
    """
    if table is None:
        return [Written((FileTensor(one.name, one.torch_shape, one.dtype),), (), False, False) for one in entries]
    written, used = [], set()
    for entry in entries:
        found = table.entry_of(entry.name)
        if found is None:
            written.append(Written((FileTensor(entry.name, entry.torch_shape, entry.dtype),), (), False, False))
            continue
        line, values = found
        used.add(line.name.text)
        rows = _rows(entry, len(line.parts), table)
        if line.transpose and len(entry.torch_shape) != 2:
            raise ValueError(f"{entry.name} must have 2 axes to be transposed, got shape {entry.torch_shape}")
        whole = len(line.parts) == 1
        shapes = [entry.torch_shape] if whole else [(length, *entry.torch_shape[1:]) for length in rows]
        shapes = [shape[::-1] for shape in shapes] if line.transpose else shapes
        names = line.part_names(values)
        parts = tuple(FileTensor(name, shape, entry.dtype) for name, shape in zip(names, shapes, strict=True))
        written.append(Written(parts, rows, line.transpose, True))
    if unused := [line.name.text for line in table.entries if line.name.text not in used]:
        raise ValueError(f"{table.path} names tensors that the flow does not have: {_some(unused)}")
    names_seen: set[str] = set()
    for part in (part for one in written for part in one.parts):
        if part.name in names_seen:
            raise ValueError(f"{table.path} gives the name {part.name} to two tensors of the file")
        names_seen.add(part.name)
    return written
