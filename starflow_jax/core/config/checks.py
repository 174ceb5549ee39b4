"""One-sentence checks of configuration fields."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence


def check(condition: bool, sentence: str) -> None:
    """Raises ValueError with `sentence` unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `minimum` (bool is not an integer here)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def check_real(name: str, value: object, *, minimum: float = -math.inf) -> None:
    """Raises ValueError unless `value` is a finite number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < minimum:
        bound = f" >= {minimum:g}" if math.isfinite(minimum) else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
