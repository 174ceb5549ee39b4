"""Parsing of paths on the command line, and of the functions that an option names."""

from __future__ import annotations

import argparse
import re
import stat
from pathlib import Path

from starflow_jax.cli.options.arguments import shortened
from starflow_jax.core.registries import REWARDS
from starflow_jax.core.regular_files import file_kind
from starflow_jax.core.storage.addresses import address_text, is_address


def path(text: str) -> Path:
    """Parses the path of a file or folder, which may be missing.

    Named pipes and devices are refused: reading a pipe blocks, and a file that is written under a temporary name and
    renamed would replace a device.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path without null bytes, got {shortened(text)!r}")
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"must be a path of a file system, got the address {shortened(address_text(text))!r}"
        )
    result = Path(text)
    try:
        mode = result.stat().st_mode
    except FileNotFoundError:
        return result
    except OSError as error:  # a name that is too long, a folder on the way that is a file, missing permissions
        reason = error.strerror or str(error)
        raise argparse.ArgumentTypeError(f"must be a path, got {shortened(text)!r}: {reason}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise argparse.ArgumentTypeError(f"must be a file or folder, got {text!r}, {file_kind(mode)}")
    return result


def experiment_file(text: str) -> str:
    """Parses FILE[:VARIANT]; returns the text."""
    if not text.strip().strip(":"):
        raise argparse.ArgumentTypeError(f"must be FILE[:VARIANT], got {text!r}")
    path(text)
    path(text.rpartition(":")[0] or text)
    return text


def function_name(text: str) -> str:
    """Parses MODULE:FUNCTION; returns the text."""
    if not re.fullmatch(r"[\w.]{1,200}:\w{1,200}", text):
        raise argparse.ArgumentTypeError(f"must be MODULE:FUNCTION, got {shortened(text)!r}")
    return text


def network_name(text: str) -> str:
    """Parses FILE, the name of a network, or MODULE:FUNCTION; returns the text."""
    if ":" in text and not is_address(text) and not Path(text).exists():
        return function_name(text)
    path(text)
    return text


def operator_name(text: str) -> str:
    """Parses FILE.py:FUNCTION or MODULE:FUNCTION; returns the text."""
    source, colon, function = text.rpartition(":")
    if not colon or not source.endswith(".py"):
        if not re.fullmatch(r"[\w.]{1,200}:\w{1,200}", text):
            raise argparse.ArgumentTypeError(f"must be FILE.py:FUNCTION or MODULE:FUNCTION, got {shortened(text)!r}")
        return text
    if not re.fullmatch(r"\w{1,200}", function):
        raise argparse.ArgumentTypeError(f"must be FILE.py:FUNCTION, got {shortened(text)!r}")
    path(source)
    return text


def reward_name(text: str) -> str:
    """Parses the name of a reward, FILE.py:FUNCTION, MODULE:FUNCTION or clip:MODULE:FUNCTION; returns the text."""
    source, colon, function = text.rpartition(":")
    if not colon:
        names = REWARDS.names()
        if text not in names:
            allowed = f"one of {', '.join(names)}, FILE.py:FUNCTION or MODULE:FUNCTION"
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {shortened(text)!r}")
        return text
    if not source.endswith(".py"):
        function_name(text.removeprefix("clip:"))
        return text
    if not re.fullmatch(r"\w{1,200}", function):
        raise argparse.ArgumentTypeError(f"must be FILE.py:FUNCTION, got {shortened(text)!r}")
    path(source)
    return text
