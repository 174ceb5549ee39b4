"""The collectives of a program, summed up by kind and by axes of the mesh."""

from __future__ import annotations

import dataclasses

from starflow_jax.planning.collectives import Collective, mesh_axes


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Collectives of one kind along the same axes of the mesh, in one call of the program, on one device.

    Attributes:
      kind: as in `collectives`; axes: of the mesh, None where they are no whole axes.
      count: operations; sent: bytes that the device sends; overlapped: share of them that runs beside other work.
    """

    kind: str
    axes: tuple[str, ...] | None
    count: int
    sent: float
    overlapped: float


def transfers(found: list[Collective], sizes: dict[str, int]) -> list[Transfer]:
    """Collectives by kind and axes, the heaviest first."""
    groups: dict[tuple[str, tuple[str, ...] | None], list[Collective]] = {}
    for collective in found:
        groups.setdefault((collective.kind, mesh_axes(collective, sizes)), []).append(collective)
    rows = []
    for (kind, axes), members in groups.items():
        sent = sum(c.sent * c.times for c in members)
        beside = sum(c.sent * c.times for c in members if c.overlapped)
        rows.append(Transfer(kind, axes, sum(c.times for c in members), sent, beside / sent if sent else 0.0))
    return sorted(rows, key=lambda row: -row.sent)
