"""Examples that cannot be read: each is skipped, counted and reported, and too many of them are an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# This many examples are stored by name; further ones are only counted.
MAX_NAMED = 100
# The window of the error rate: an error is raised where more than half of this many examples cannot be read.
TRIES = 100


class BadExample(Exception):
    """An example that cannot be read.

    Attributes:
      name: the file, or the index in it; reason: the cause, without a full stop.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def error_reason(error: BaseException) -> str:
    """The cause in one line, from any exception of a decoder."""
    if type(error).__name__ == "UnidentifiedImageError":  # its text is the address of an object
        return "it is not an image, or of an unsupported format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).removesuffix(".")[:200] or type(error).__name__


@dataclasses.dataclass
class Skipped:
    """Counts of the examples that could not be read and were skipped.

    Attributes:
      tried: examples requested; bad: how many of them could not be read, repeats included.
      reasons: the causes by name, of the first `MAX_NAMED`.
    """

    tried: int = 0
    bad: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    _recent: tuple[int, int] = (0, 0)

    def first(self) -> str:
        """The first cause as the end of a sentence; empty without any."""
        return "".join(f", such as {name}: {reason}" for name, reason in list(self.reasons.items())[:1])

    def merge(self, other: Skipped) -> None:
        """Adds the counts of another."""
        self.tried += other.tried
        self.bad += other.bad
        self.name(other.reasons)

    def name(self, reasons: Mapping[str, str]) -> None:
        """Adds names to examples that are already counted."""
        for name, reason in reasons.items():
            if len(self.reasons) < MAX_NAMED:
                self.reasons.setdefault(name, reason)

    def add(self, num_tried: int, bad: Sequence[tuple[str, str]]) -> None:
        """Counts `num_tried` more examples, of which those in `bad`, (name, reason), could not be read.

        Raises:
          ValueError: more than half of the last 100 or more examples could not be read.
        """
        self.tried += num_tried
        self.bad += len(bad)
        self.name(dict(bad))
        self._recent = (self._recent[0] + num_tried, self._recent[1] + len(bad))
        if self._recent[0] >= TRIES:
            tries, failures = self._recent
            self._recent = (0, 0)
            if 2 * failures > tries:
                raise ValueError(too_many_bad(failures, tries, self.reasons))


def too_many_bad(bad: int, tries: int, reasons: dict[str, str]) -> str:
    """The error message for data most of which cannot be read."""
    name, reason = next(iter(reasons.items()))
    return f"data cannot be read: {bad} of {tries} examples in a row were bad, such as {name}: {reason}"
