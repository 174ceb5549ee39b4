"""Totals of a program's collectives by kind and mesh axes."""

from __future__ import annotations

import dataclasses

from starflow_jax.planning.collectives import Collective, mesh_axes


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Total of the collectives of one kind along the same mesh axes, for one call of the program on one device.

    Attributes:
      kind: as in `collectives`; axes: mesh axes, None if the groups are not whole axes.
      count: number of operations; sent: bytes that the device sends; overlapped: share of these bytes whose transfer
        overlaps with other work.
    """

    kind: str
    axes: tuple[str, ...] | None
    count: int
    sent: float
    overlapped: float


def transfers(collectives: list[Collective], sizes: dict[str, int]) -> list[Transfer]:
    """Groups collectives by kind and axes, largest traffic first."""
    groups: dict[tuple[str, tuple[str, ...] | None], list[Collective]] = {}
    for collective in collectives:
        groups.setdefault((collective.kind, mesh_axes(collective, sizes)), []).append(collective)
    rows = []
    for (kind, axes), members in groups.items():
        sent = sum(c.sent * c.times for c in members)
        overlapped = sum(c.sent * c.times for c in members if c.overlapped)
        rows.append(Transfer(kind, axes, sum(c.times for c in members), sent, overlapped / sent if sent else 0.0))
    return sorted(rows, key=lambda row: -row.sent)
