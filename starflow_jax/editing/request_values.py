"""Arrays in the request of chains, which are compared up to the rounding of another device.

An array that a device computed differs in its last bits on another one, so that a checksum would tell them apart. Sums
with random signs are compared instead: they change with every value, and a tolerance leaves room for rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import shown

# Parts of an array, each of which has a sum.
_SUMS = 32
# Relative to the largest sum. Float32 rounds to 1e-7, and one level of one pixel among 10^6 changes a sum by 3e-5.
_TOLERANCE = 1e-5


def summary(name: str, values: np.ndarray) -> dict[str, Any]:
    """An array in a request, in values of JSON.

    Args:
      name: what the array is, for messages; values: float [...], in the order of its axes.

    Returns:
      `of`, the name with the shape, and `sums`: of at most 32 parts of the array, with a random sign for each value.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    signed = flat * np.random.default_rng(0).choice((-1.0, 1.0), flat.size)
    sums = [float(part.sum()) for part in np.array_split(signed, min(_SUMS, max(1, flat.size)))]
    return {"of": f"{name} {list(np.shape(values))}", "sums": sums}


def same(kept: Any, wanted: Any) -> bool:
    """Whether two values of requests are equal, arrays up to rounding; `kept` may be any JSON."""
    if not _is_summary(kept) or not _is_summary(wanted):
        return bool(kept == wanted)
    a, b = np.asarray(kept["sums"], np.float64), np.asarray(wanted["sums"], np.float64)
    if kept["of"] != wanted["of"] or a.shape != b.shape:
        return False
    return bool(np.abs(a - b).max(initial=0.0) <= _TOLERANCE * np.abs(np.concatenate([a, b])).max(initial=0.0))


def described(value: Any) -> str:
    """A value of a request as messages quote it: of an array its name and shape, and its first sums."""
    if not _is_summary(value):
        return shown(value)
    return shown(f"{value['of']} with sums " + ", ".join(f"{number:.7g}" for number in value["sums"][:2]))


def _is_summary(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"of", "sums"} or not isinstance(value["sums"], list):
        return False
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in value["sums"])
    return isinstance(value["of"], str) and numbers
