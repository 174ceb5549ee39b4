"""Parsing of options; every error message states the value seen and what is allowed."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from starflow_jax.cli.errors import CommandError

LARGEST_INT32 = 2**31 - 1  # labels are int32


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, without the usage; abbreviated options are not accepted."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def options(self) -> list[str]:
        """The long options declared so far; argparse has no public list of them."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def flags(self) -> dict[str, str]:
        """The options by the fields that they set, `--num` for "num"."""
        flags: dict[str, str] = {}
        for name, action in self._option_string_actions.items():
            flags.setdefault(action.dest, name)
        return flags

    def flag(self, field: str) -> str:
        """The option that sets a field of a request; the field if there is no such option."""
        return self.flags().get(field, field)

    def error(self, message: str) -> NoReturn:
        """Raises CommandError."""
        raise CommandError(re.sub(r"^argument (\S+): ", r"\1 ", message))


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Parses an integer from `minimum` to `maximum`; None for no upper bound."""
    allowed = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def read(text: str) -> int:
        try:
            value: int | None = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
        return value

    return read


def real(minimum: float = 0.0, *, above: bool = False) -> Callable[[str], float]:
    """Parses a finite number >= `minimum`, or > `minimum` if `above`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum or (above and value == minimum):
            bound = ">" if above else ">="
            raise argparse.ArgumentTypeError(f"must be a finite number {bound} {minimum:g}, got {text!r}")
        return value

    return read


def choice(*allowed: str) -> Callable[[str], str]:
    """Parses one of the words `allowed`."""

    def read(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(allowed)}, got {text!r}")
        return text

    return read


def class_choice(text: str) -> int | str:
    """Parses a class: its index, its name, "all" for all classes in turn, or "none"."""
    if text and not re.fullmatch(r"[-+]?[\d_.]+", text):
        return text
    try:
        return integer(0, LARGEST_INT32)(text)
    except argparse.ArgumentTypeError:
        allowed = f"a class number from 0 to {LARGEST_INT32}, the name of a class, all or none"
        raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}") from None


def check_names(argv: Sequence[str], allowed: Sequence[str], what: str) -> None:
    """Raises CommandError for the first name in `argv` that is not in `allowed`; the message suggests similar names."""
    for text in argv:
        name = text.partition("=")[0]
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(allowed)}"
            raise CommandError(f"{name!r} is not {what}; {hint}")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the arguments into those without overrides `--config.NAME=VALUE`, and the overrides.

    Raises:
      CommandError: an override without a value.
    """
    overrides = [text for text in argv if text.startswith("--config.")]
    for text in overrides:
        if "=" not in text:
            raise CommandError(f"an override must be --config.NAME=VALUE, got {text!r}")
    return [text for text in argv if not text.startswith("--config.")], overrides
