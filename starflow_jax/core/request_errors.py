"""Errors of requests, which are frozen dataclasses that hold the arguments of a library function."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any


class RequestError(ValueError):
    """A field of a request has a value that is not allowed, or two fields are mutually exclusive.

    The message names fields of the request; the command line replaces them by the names of its options.

    Attributes:
      template: the message as a format string. A named replacement field (`{num}`) stands for that field of the
        request, and an indexed one (`{0}`, `{1:g}`) for an entry of `values`.
      values: the values of the indexed replacement fields.
    """

    def __init__(self, template: str, *values: Any):
        self.template, self.values = template, values
        super().__init__(self.text(lambda field: field))

    def text(self, named: Callable[[str], str]) -> str:
        """The message, with `named(field)` in place of every field of the request."""
        parts = (name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None)
        fields = {name: named(name) for name in parts if not name.isdigit()}
        return self.template.format(*self.values, **fields)


def require(condition: bool, template: str, *values: Any) -> None:
    """Raises RequestError(template, *values) unless `condition` holds."""
    if not condition:
        raise RequestError(template, *values)
