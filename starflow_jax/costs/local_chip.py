"""The chip of the local devices, and its published peak."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from starflow_jax.costs.chips import CHIPS

# Substrings of JAX's "device_kind" and the names of the chips; the first match is used.
_KINDS = (
    ("tpu v4", "v4"),
    ("tpu v5 lite", "v5e"),
    ("tpu v5e", "v5e"),
    ("tpu v5", "v5p"),
    ("tpu v6", "v6e"),
    ("tpu7x", "tpu7x"),
    ("a100-sxm4-40", "a100-40"),
    ("a100-pcie-40", "a100-40"),
    ("a100", "a100-80"),
    ("h100", "h100"),
    ("h200", "h200"),
    ("b200", "b200"),
)


def local_peak(devices: Sequence[jax.Device]) -> float | None:
    """Total bfloat16 FLOP/s of these devices; None if no published peak is known for their kind."""
    name = chip_name(devices[0].device_kind)
    return None if name is None else len(devices) * CHIPS[name].peak / CHIPS[name].devices


def chip_name(kind: str) -> str | None:
    """The name in `CHIPS` of a device of this `jax.Device.device_kind`; None if it has none."""
    kind = kind.lower()
    if ("pcie" in kind and "a100" not in kind) or "gh200" in kind:  # these are slower or coupled differently
        return None
    return next((name for part, name in _KINDS if part in kind), None)
