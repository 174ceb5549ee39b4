"""Examples that cannot be used: each is skipped, counted and named, and too many of them end the reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# Named in full; more than that are only counted.
MOST_NAMED = 100
# So many tries are looked at together: more than half of them in vain is no data set with a few bad files.
TRIES = 100


class BadExample(Exception):
    """An example that cannot be used.

    Attributes:
      name: of the file, or of the place in one; reason: why, without a full stop.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def reason_of(error: BaseException) -> str:
    """Why, in one line, of whatever a decoder raised."""
    if type(error).__name__ == "UnidentifiedImageError":  # whose text is the address of an object
        return "it is no picture, or of no known format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).removesuffix(".")[:200] or type(error).__name__


@dataclasses.dataclass
class Skipped:
    """What was skipped so far.

    Attributes:
      tried: examples asked for, good and bad; bad: how many of them were bad, repeats included.
      reasons: why, by name, of the first `MOST_NAMED` that were bad.
    """

    tried: int = 0
    bad: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    _recent: tuple[int, int] = (0, 0)

    def merge(self, other: Skipped) -> None:
        """Counts what another skipped, too."""
        self.tried += other.tried
        self.bad += other.bad
        self.name(other.reasons)

    def name(self, reasons: Mapping[str, str]) -> None:
        """Names what is counted already."""
        for name, reason in reasons.items():
            if len(self.reasons) < MOST_NAMED:
                self.reasons.setdefault(name, reason)

    def add(self, tried: int, bad: Sequence[tuple[str, str]]) -> None:
        """Counts `tried` more examples, of which those in `bad`, (name, reason), were.

        Raises:
          ValueError: more than half of the last 100 or more tries were in vain.
        """
        self.tried += tried
        self.bad += len(bad)
        self.name(dict(bad))
        self._recent = (self._recent[0] + tried, self._recent[1] + len(bad))
        if self._recent[0] >= TRIES:
            tries, in_vain = self._recent
            self._recent = (0, 0)
            if 2 * in_vain > tries:
                raise ValueError(hopeless(in_vain, tries, self.reasons))


def hopeless(bad: int, tries: int, reasons: dict[str, str]) -> str:
    """The sentence that ends the reading of data that is mostly unusable."""
    name, reason = next(iter(reasons.items()))
    return f"data cannot be read: {bad} of {tries} examples in a row were bad, such as {name}: {reason}"
