"""Counts of files by suffix, as the end of a sentence."""

from __future__ import annotations

from collections import Counter

_MOST_NAMED = 4
_LONGEST = 16


def most_frequent(counts: Counter[str]) -> str:
    """The most frequent suffixes with their counts, such as "12 .md, 3 without a suffix, and others"."""
    named = Counter[str]()
    for suffix, count in counts.items():
        named[_printable(suffix)] += count
    ordered = sorted(named.items(), key=lambda entry: (-entry[1], entry[0]))
    most = ", ".join(f"{count} {suffix}" for suffix, count in ordered[:_MOST_NAMED])
    return f"{most}, and others" if len(named) > _MOST_NAMED else most


def _printable(suffix: str) -> str:
    """A suffix in a sentence; names of files may contain anything."""
    if len(suffix) > _LONGEST or not suffix.isprintable():
        return "with unusual suffixes"
    return suffix or "without a suffix"
