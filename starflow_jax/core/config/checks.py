"""Checks of configuration fields."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Sequence
from typing import Any, TypeGuard

from starflow_jax.core.choices import choices
from starflow_jax.core.storage.addresses import Address, is_address, refuse_address

# Bounds of fields without bounds of their own: larger values overflow int32 or float32 sooner or later.
MAX_INTEGER = 2**32 - 1
MAX_REAL = 1e12


def check(condition: bool, sentence: str) -> None:
    """Raises ValueError with the message `sentence` unless `condition` holds."""
    if not condition:
        raise ValueError(sentence)


def check_integer(name: str, value: object, *, minimum: int, maximum: int = MAX_INTEGER) -> None:
    """Raises ValueError unless `value` is an integer from `minimum` to `maximum` (bool is not an integer here)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {shown(value)}")
    if int(value) > maximum:
        raise ValueError(f"{name} must be an integer <= {maximum}, got {shown(value)}")


def check_real(name: str, value: object, *, minimum: float = -math.inf, maximum: float = MAX_REAL) -> None:
    """Raises ValueError unless `value` is a finite number >= `minimum` of a magnitude of at most `maximum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_finite(value) or value < minimum:
        bound = f" >= {minimum:g}" if math.isfinite(minimum) else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {shown(value)}")
    if value > maximum or value < -maximum:
        raise ValueError(f"{name} must be a number of magnitude <= {maximum:g}, got {shown(value)}")


def _is_finite(value: numbers.Real) -> TypeGuard[float]:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return True


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
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")


def check_paths(config: object, *names: str) -> None:
    """Raises ValueError where one of the fields is an address of an object store instead of a path."""
    for name in names:
        refuse_address(name, getattr(config, name))


def check_addresses(config: object, *names: str) -> None:
    """Raises ValueError where one of the fields is an address of a store that is not written as one."""
    for name in names:
        value = getattr(config, name)
        if is_address(value):
            try:
                Address.parse(str(value))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error


def shown(value: object) -> str:
    """The value as messages quote it: its `repr`, at most 200 characters of it.

    An integer of thousands of digits, which Python refuses to print, is described by its number of bits.
    """
    if isinstance(value, int) and value.bit_length() > 14_000:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
