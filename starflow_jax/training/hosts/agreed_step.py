"""The checkpoint that hosts continue from where their local folders are ahead of the store, of which some may be lost.

Checksums of a checkpoint are those of the values of whole arrays, computed by all processes together. Hosts whose
records of them are equal therefore hold shards of the same state, and a checkpoint is complete where every shard of
every array is on some host.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from starflow_jax.core.regular_files import read_text
from starflow_jax.core.storage.publication import finished_files
from starflow_jax.training.hosts.array_files import array_of, counted_shards, step_of

_DIGESTS = "digests/metadata"  # of a checkpoint, written by every host


@dataclasses.dataclass(frozen=True)
class Held:
    """The files of a checkpoint that one host holds.

    Attributes:
      digests: the record of its checksums; names: of its files; shards: number of shards of every array, by the name of
        its folder.
    """

    digests: str
    names: tuple[str, ...]
    shards: dict[str, int]


Report = dict[int, Held]  # by step


def held_steps(folder: Path, published: Collection[int]) -> Report:
    """The checkpoints in the local folder of a run that the store does not have, without those that cannot be read.

    Args:
      published: steps that the store has.
    """
    by_step: dict[int, list[str]] = {}
    for name in finished_files(folder):
        step = step_of(name)
        if step is not None and step not in published:
            by_step.setdefault(step, []).append(name)
    report = {}
    for step, names in by_step.items():
        try:
            digests = read_text(folder / f"checkpoints/{step}/{_DIGESTS}")
            report[step] = Held(digests, tuple(names), counted_shards(folder, names))
        except (OSError, ValueError):
            continue
    return report


def to_text(report: Report) -> str:
    """A report as text, for other processes."""
    return json.dumps({str(step): dataclasses.astuple(held) for step, held in report.items()})


def from_text(text: str) -> Report:
    """The report of another process."""
    return {int(step): Held(one, tuple(names), shards) for step, (one, names, shards) in json.loads(text).items()}


def newest_complete(reports: Sequence[Report]) -> tuple[int, list[list[str]]] | None:
    """The newest step that is complete on all hosts together, and for each the files that it publishes.

    A file that several hosts hold is published by the first of them.

    Args:
      reports: of all processes.

    Returns:
      None where no step is complete.
    """
    for step in sorted({step for report in reports for step in report}, reverse=True):
        holders = [report.get(step) for report in reports]
        if len({held.digests for held in holders if held is not None}) > 1:
            continue
        shards: dict[str, int] = {}
        names: set[str] = set()
        shares: list[list[str]] = []
        for held in holders:
            shares.append([] if held is None else [name for name in held.names if name not in names])
            names |= set(shares[-1])
            shards |= {} if held is None else held.shards
        if Counter(array for name in names if (array := array_of(name, names)) is not None) == Counter(shards):
            return step, shares
    return None
