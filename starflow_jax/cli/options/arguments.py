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
LARGEST_REAL = 1e6  # beyond it, arithmetic in float32 overflows sooner or later
_MAX_DIGITS = 100  # longer numbers take long to parse
_SHOWN = 80  # characters of a value in a message


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


def integer(minimum: int, maximum: int = LARGEST_INT32) -> Callable[[str], int]:
    """Parses an integer from `minimum` to `maximum`."""
    allowed = f">= {minimum}" if maximum == LARGEST_INT32 else f"from {minimum} to {maximum}"

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) <= _MAX_DIGITS else maximum + 1
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}") from None
        if not minimum <= value <= maximum:
            expected = f"<= {maximum}" if value > maximum == LARGEST_INT32 else allowed
            raise argparse.ArgumentTypeError(f"must be an integer {expected}, got {shortened(text)!r}")
        return value

    return read


def real(minimum: float = 0.0, maximum: float = LARGEST_REAL, *, above: bool = False) -> Callable[[str], float]:
    """Parses a finite number from `minimum` to `maximum`, or > `minimum` if `above`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum or (above and value == minimum):
            bound = ">" if above else ">="
            raise argparse.ArgumentTypeError(f"must be a finite number {bound} {minimum:g}, got {shortened(text)!r}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"must be a number <= {maximum:g}, got {shortened(text)!r}")
        return value

    return read


def choice(*allowed: str) -> Callable[[str], str]:
    """Parses one of the words `allowed`."""

    def read(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(allowed)}, got {shortened(text)!r}")
        return text

    read.allowed = allowed  # type: ignore[attr-defined]
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


def aspect(text: str) -> str:
    """Parses an aspect ratio W:H, both numbers above 0 and at most 10,000; returns the text."""
    sides = [side for side in text.split(":") if re.fullmatch(r"\d{1,5}(\.\d{1,6})?", side, re.ASCII)]
    if len(sides) != 2 or text.count(":") != 1 or not all(0 < float(side) <= 10_000 for side in sides):
        raise argparse.ArgumentTypeError(f"must be W:H, both above 0 and at most 10000, got {shortened(text)!r}")
    return text


def check_values(argv: Sequence[str]) -> None:
    """Raises CommandError for `--name=--`, of which argparse makes an empty list instead of a value."""
    for text in argv:
        name, _, value = text.partition("=")
        if name.startswith("--") and value == "--":
            raise CommandError(f"{name} must have a value, got '--'")


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


def shortened(text: str) -> str:
    """The beginning of a value, for messages."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
