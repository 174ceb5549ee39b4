"""Places arrays on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from starflow_jax.core.config.checks import check


@dataclasses.dataclass(frozen=True)
class Placement:
    """A device for arrays; None leaves them where they are."""

    device: jax.Device | None = None

    def put(self, tree: Any) -> Any:
        """The tree with its arrays on the device; copies are asynchronous."""
        return tree if self.device is None else jax.device_put(tree, self.device)

    def struct(self, tree: Any) -> Any:
        """The tree as ShapeDtypeStructs of arrays on the device."""
        sharding = None if self.device is None else jax.sharding.SingleDeviceSharding(self.device)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def placements(devices: Sequence[jax.Device] | None) -> tuple[Placement, Placement]:
    """Placements of the deep block and of everything after it; a single device serves both.

    Raises:
      ValueError: neither one nor two devices.
    """
    if devices is None:
        return Placement(), Placement()
    check(len(devices) in (1, 2), f"devices must be one or two, got {len(devices)}")
    return Placement(devices[0]), Placement(devices[-1])
