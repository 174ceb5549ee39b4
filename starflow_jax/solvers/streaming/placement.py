"""Where arrays live: on a named device, or wherever they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from starflow_jax.core.config.checks import check


@dataclasses.dataclass(frozen=True)
class Placement:
    """A device; None leaves arrays where they are."""

    device: jax.Device | None = None

    def put(self, tree: Any) -> Any:
        """The arrays of a tree, there; copies are made in the background."""
        return tree if self.device is None else jax.device_put(tree, self.device)

    def struct(self, tree: Any) -> Any:
        """Shapes and dtypes of a tree, as of arrays that live there."""
        sharding = None if self.device is None else jax.sharding.SingleDeviceSharding(self.device)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def placements(devices: Sequence[jax.Device] | None) -> tuple[Placement, Placement]:
    """Placements of the deep block and of everything behind it; one device is both's, None leaves them be.

    Raises:
      ValueError: another number of devices.
    """
    if devices is None:
        return Placement(), Placement()
    check(len(devices) in (1, 2), f"devices must be one or two, got {len(devices)}")
    return Placement(devices[0]), Placement(devices[-1])
