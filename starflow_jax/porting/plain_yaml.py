"""YAML of plain values: what a configuration file of the originals needs, and nothing that grows while it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from starflow_jax.core.regular_files import read_text

_MAX_BYTES = 2**20
_MAX_DIGITS = 66  # characters of an integer: 64 bits in base 2, with sign and prefix
_PLAIN = (str, int, float, bool, type(None))


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, whose repetition grows exponentially, and with integers of 64 bits."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it repeats a part by its anchor, *{shortened(self.peek_event().anchor)}")
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        digits = self.construct_scalar(node)
        value = super().construct_yaml_int(node) if len(digits) <= _MAX_DIGITS else None
        if value is None or abs(value) >= 2**63:
            raise ValueError(f"it contains the integer {shortened(digits)}, which has more than 64 bits")
        return int(value)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def read_plain_yaml(path: Path) -> Any:
    """Reads a YAML file of mappings, lists and plain values: text, finite numbers, booleans and null.

    Raises:
      ValueError: the file is missing or no regular file, or holds something else: aliases, dates, binary data, integers
        of more than 64 bits, infinity; the message is one sentence that names the file.
    """
    try:
        content = yaml.load(read_text(path, _MAX_BYTES), _PlainLoader)
        _check_plain(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML of plain values") from error
    except (ValueError, TypeError, OverflowError, ArithmeticError, KeyError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split()) if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path} is not YAML of plain values: {reason}") from error
    return content


def _check_plain(content: Any) -> None:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, _PLAIN):
                    raise ValueError(f"it has a key of type {type(key).__name__}")
                if isinstance(item, float) and not math.isfinite(item):
                    raise ValueError(f"it must contain finite numbers, got {item} for {shortened(str(key))}")
                waiting.append(item)
        elif isinstance(value, list):
            waiting += value
        elif not isinstance(value, _PLAIN):
            raise ValueError(f"it contains a value of type {type(value).__name__}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"it must contain finite numbers, got {value}")


def shortened(text: str, most: int = 40) -> str:
    """At most so many characters of a text from a file, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
