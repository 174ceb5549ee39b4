"""Requests of the library, built from the parsed options of a command."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

from starflow_jax.cli.errors import sentences

T = TypeVar("T")


def build_request(request: type[T], arguments: argparse.Namespace, **values: Any) -> T:
    """A request whose fields have the values of the options with the same `dest`.

    An option that was not given (None) leaves its field at the default. The request checks its fields when it is
    built; `starflow` shows the message of its `RequestError` with the names of the options (`Parser.flag`).

    Args:
      request: a frozen dataclass.
      arguments: the parsed options.
      **values: fields that are not taken from `arguments`.

    Raises:
      RequestError: a field is out of range, or fields are mutually exclusive.
      CommandError: the same, where the request raises a ValueError that names no option.
    """
    names = [field.name for field in dataclasses.fields(request) if field.init]  # type: ignore[arg-type]
    options = {name: getattr(arguments, name, None) for name in names if name not in values}
    given = {name: value for name, value in options.items() if value is not None}
    with sentences():
        return request(**given, **values)
