"""Checks of configuration fields."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Sequence
from typing import Any

from starflow_jax.core.choices import choices


def check(condition: bool, sentence: str) -> None:
    """Raises ValueError with the message `sentence` unless `condition` holds."""
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


def check_choices(config: object) -> None:
    """Raises ValueError unless every field that a dataclass declares as a `Literal` has one of its values."""
    cls: Any = type(config)
    for name, allowed in _choice_fields(cls):
        check_choice(name, getattr(config, name), allowed)


@functools.cache
def _choice_fields(cls: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The fields of a dataclass that are declared as a `Literal`, with their allowed values."""
    hints = typing.get_type_hints(cls)
    fields = []
    for field in dataclasses.fields(cls):
        try:
            fields.append((field.name, choices(hints[field.name])))
        except TypeError:
            continue
    return tuple(fields)


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
