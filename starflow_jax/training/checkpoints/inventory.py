"""The contents of the checkpoint folder of a run, from names, sizes and small JSON files; no arrays are read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.config.build import build, to_json
from starflow_jax.training.checkpoints.manager import PARTS
from starflow_jax.training.checkpoints.parts import Unusable, read_digests, read_json
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, RECORDED_FIELDS


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of the checkpoint folder.

    Attributes:
      name: of its folder; step: None for anything but a checkpoint.
      bytes: size on disk; parts: names of its parts.
      batches: number of batches of the current curriculum stage read by then, None if unknown.
      problem: reason why it cannot be used, None for a complete one (its arrays are not read and may still be damaged).
      differences: of its configuration from that of the run, such as "train.log_every 10, now 20".
    """

    name: str
    step: int | None
    bytes: int
    parts: tuple[str, ...]
    batches: int | None
    problem: str | None
    differences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def checkpoint_entries(workdir: Path, config: AnyExperiment) -> list[Entry]:
    """All entries of the checkpoint folder, checkpoints by step first; empty if there is no folder."""
    folder = Path(workdir) / CHECKPOINT_FOLDER
    if not folder.is_dir():
        return []
    entries = [_entry(path, config) for path in folder.iterdir()]
    return sorted(entries, key=lambda entry: (entry.step is None, entry.step or 0, entry.name))


def _entry(path: Path, config: AnyExperiment) -> Entry:
    parts = tuple(name for name in PARTS if (path / name).is_dir())
    step = int(path.name) if re.fullmatch("0|[1-9][0-9]*", path.name) else None
    batches: int | None = None
    problem: str | None = None
    differences: tuple[str, ...] = ()
    if step is None:
        unfinished = "-tmp" in path.name
        problem = "being written, or left incomplete by a killed run" if unfinished else "renamed because it is damaged"
    else:
        try:
            digests = read_digests(path)
            missing = [name for name in PARTS if name in digests and name not in parts]
            if missing:
                raise Unusable(f"is damaged: it has no {missing[0]}")
            position = read_json(path, "loader", digests)
            batches = position.get("next_index") if isinstance(position, Mapping) else None
            saved, current = (dict(_flat(one)) for one in (_as_now(path, config, digests), json.loads(to_json(config))))
            names = [name for name in {**saved, **current} if _differs(name, saved.get(name), current.get(name))]
            differences = tuple(f"{name} {saved.get(name)!r}, now {current.get(name)!r}" for name in names)
        except Unusable as error:
            # A run in progress may remove old checkpoints at any moment.
            problem = str(error) if path.exists() else "was just removed"
    return Entry(path.name, step, sum(_sizes(path)), parts, batches, problem, differences)


def _as_now(path: Path, config: AnyExperiment, digests: Mapping[str, Any]) -> Any:
    """The configuration of a checkpoint, with the defaults of fields that it was written without."""
    saved = read_json(path, "config", digests)
    try:
        return json.loads(to_json(build(type(config), saved)))
    except ValueError:  # of another version: shown field by field
        return saved


def _differs(name: str, saved: Any, current: Any) -> bool:
    """Whether two values of a field differ; a field that a run records is None where it was not recorded yet."""
    recorded = name.rpartition(".")[2] in RECORDED_FIELDS
    return saved != current and not (recorded and None in (saved, current))


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a configuration by dotted name."""
    if not isinstance(values, Mapping):
        yield path.removeprefix("."), values
        return
    for name, value in values.items():
        yield from _flat(value, f"{path}.{name}")


def _sizes(path: Path) -> Iterator[int]:
    for file in [path, *path.rglob("*")]:
        try:
            yield file.stat().st_size if file.is_file() else 0
        except OSError:  # removed in the meantime
            continue
