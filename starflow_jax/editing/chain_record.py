"""The record of chains that are kept in a folder: of what request they are, and how far each group is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from starflow_jax.core.config.checks import check, shown
from starflow_jax.editing.request_values import described, same

RECORD = "chains.json"
T = TypeVar("T")


class Group(NamedTuple):
    """The entry of a group in the record; draws: the parts after which a file was written, with its checksum."""

    parts: int
    state: str
    draws: tuple[tuple[int, str], ...]


def again(path: Path) -> str:
    """The end of a sentence on a damaged folder."""
    return f"; remove the folder {path} to start again"


def read_groups(path: Path, record: Any, wanted: dict[str, Any], count: int) -> list[Group]:
    """The groups of a record of the same request.

    Args:
      path: of the folder, for messages; record: any JSON; wanted: the request; count: the number of its groups.

    Raises:
      ValueError: it is no record, a damaged one, or one of another request.
    """
    try:
        kept = _typed(record["request"], dict)
        groups = [
            Group(
                _typed(one["parts"], int),
                _typed(one["state"], str),
                tuple((_typed(parts, int), _typed(checksum, str)) for parts, checksum in one["draws"]),
            )
            for one in record["groups"]
        ]
        # In order, so that the draws of a file have a number; the last may be those of the state.
        ordered = all(_rises((0, *(parts for parts, _ in one.draws), one.parts)) for one in groups)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / RECORD} is no record of chains: {error!r}{again(path)}") from error
    differing = sorted(name for name in {*wanted, *kept} if not same(kept.get(name), wanted.get(name)))
    check(
        not differing,
        f"checkpoint {path} holds chains of another request: "
        + ", ".join(
            f"{name}={described(kept.get(name))} instead of {described(wanted.get(name))}" for name in differing
        ),
    )
    check(ordered and len(groups) <= count, f"{path / RECORD} is damaged: its parts are out of order{again(path)}")
    return groups


def _typed(value: Any, cls: type[T]) -> T:
    """The value, which must be of exactly this class: True is no integer here."""
    if type(value) is not cls:
        raise TypeError(f"{shown(value)} is not of the type {cls.__name__}")
    return value


def _rises(parts: tuple[int, ...]) -> bool:
    """Whether parts rise strictly, but for the last two."""
    return all(a < b for a, b in itertools.pairwise(parts[:-1])) and parts[-2] <= parts[-1]
