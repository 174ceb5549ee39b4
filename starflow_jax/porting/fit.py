"""Compares the tensors of a file with those of a model and reports every mismatch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.porting.infer import contradictions
from starflow_jax.porting.name_table import NameTable
from starflow_jax.porting.tensor_names import Entry, holds_scales, is_ignored
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, object_at

_EXACT = ("float32", "bfloat16", "float16")  # dtypes that convert to float32 without loss
_NARROWED = "float64"


@dataclass(frozen=True)
class Misfit:
    """One tensor that does not match the model.

    Attributes:
      kind: "missing" (in the file), "unread" (an object that is not a readable tensor), "unexpected" (by the model),
        "shape" or "type".
      name: name of the tensor; path: path of the parameter, or None.
      found, expected: shapes or dtypes in the file and in the model, or None.
      file_name: by a table of names, the name in the file, or the names of the parts; None without.
    """

    kind: str
    name: str
    path: str | None
    found: str | None
    expected: str | None
    file_name: str | None = None

    def __str__(self) -> str:
        named = "" if self.file_name is None else f" (in the file: {self.file_name})"
        return f"{self._message()}{named}"

    def _message(self) -> str:
        if self.kind == "missing":
            return f"missing in the file: {self.name} {self.expected}"
        if self.kind == "unread":
            return f"not read: {self.name} is an object of the file that is not a readable tensor: {self.found}"
        if self.kind == "unexpected":
            return f"unexpected in the file: {self.name} {self.found}"
        return f"{self.name} has {self.kind} {self.found} in the file, {self.expected} in the model ({self.path})"


@dataclass(frozen=True)
class Fit:
    """Result of comparing the tensors of a file with a model.

    Attributes:
      entries: all tensors of the model; misfits: the tensors that do not match.
      contradictions: differences in terms of configuration fields that the file determines.
      ignored: buffers that nothing reads; narrowed: tensors of float64, which are rounded to float32.
    """

    entries: tuple[Entry, ...]
    misfits: tuple[Misfit, ...]
    contradictions: tuple[str, ...]
    ignored: tuple[str, ...]
    narrowed: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.misfits

    def usable(self) -> set[str]:
        """Names of the tensors that match."""
        bad = {misfit.name for misfit in self.misfits}
        return {entry.name for entry in self.entries if entry.name not in bad}

    def lines(self, most: int = 400) -> list[str]:
        """Lines of the report, at most `most` and a count of the rest."""
        messages = [*self.contradictions, *(str(misfit) for misfit in self.misfits)]
        rest = len(messages) - most
        return messages[:most] + ([f"and {rest} more"] if rest > 0 else [])


def fit(
    tensors: Mapping[str, LazyTensor],
    entries: Sequence[Entry],
    config: FlowConfig,
    unread: Sequence[LeftAside] = (),
    table: NameTable | None = None,
) -> Fit:
    """Compares the names, shapes and dtypes of tensors with those of a model; values are not read.

    Args:
      tensors: tensors of the file by name.
      entries: result of `names.entries`; config: configuration of the same model.
      unread: objects of the file that are not read, at names of tensors or of what holds them.
      table: of the names in the file, where the tensors have been renamed. No field is inferred from their shapes then:
        the flow may have parts that the originals do not have.
    """
    misfits, narrowed = [], []
    for entry in entries:
        tensor = tensors.get(entry.name)
        if tensor is None and (aside := object_at(unread, entry.name)) is not None:
            misfits.append(Misfit("unread", entry.name, entry.path, str(aside), str(entry.torch_shape)))
        elif tensor is None:
            misfits.append(Misfit("missing", entry.name, entry.path, None, str(entry.torch_shape)))
        elif tensor.shape != entry.torch_shape:
            misfits.append(Misfit("shape", entry.name, entry.path, str(tensor.shape), str(entry.torch_shape)))
        elif entry.dtype != np.float32:
            if tensor.dtype != entry.dtype:
                misfits.append(Misfit("type", entry.name, entry.path, tensor.dtype.name, entry.dtype.name))
        elif tensor.dtype.name == _NARROWED:
            narrowed.append(entry.name)
        elif tensor.dtype.name not in _EXACT:
            misfits.append(Misfit("type", entry.name, entry.path, tensor.dtype.name, " or ".join(_EXACT)))
    names = {entry.name for entry in entries}
    extra = [name for name in tensors if name not in names]
    named = () if table is None else [name for name in extra if table.entry_of(name) is not None]
    ignored = tuple(sorted(name for name in extra if is_ignored(name) and name not in named))
    unexpected = sorted(set(extra) - set(ignored))
    misfits += [Misfit("unexpected", name, None, str(tensors[name].shape), None) for name in unexpected]
    # The shapes of quantised weights are not those that fields are inferred from.
    skips = table is not None or holds_scales(tensors)
    contradicted = () if skips else tuple(contradictions(config, tensors))
    if table is not None:
        misfits = [dataclasses.replace(one, file_name=table.file_names(one.name)) for one in misfits]
    return Fit(tuple(entries), tuple(misfits), contradicted, ignored, tuple(narrowed))


def not_finite(value: np.ndarray, *, most: int = 2**24) -> int:
    """Counts values that are infinite or NaN in float32, processing at most `most` values at a time."""
    flat = value.reshape(-1)
    parts = (flat[start : start + most] for start in range(0, flat.size, most))
    with np.errstate(over="ignore"):  # of float64 beyond float32
        return sum(
            part.size - int(np.count_nonzero(np.isfinite(part.astype(np.float32, copy=False)))) for part in parts
        )
