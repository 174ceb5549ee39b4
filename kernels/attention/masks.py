"""Which keys a query sees, as a rule on indices, so that no mask of queries x keys is ever stored.

A query sees the slots of the prefix and those of one interval [start, end), neither of which falls from one query to
the next. From that everything follows: the mask of a tile, whether any or all of a block is seen, and the ranges of
keys outside which nothing is. Kernels evaluate it a tile at a time, the reference inside a fused comparison.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Visibility(abc.ABC):
    """A rule that says which key slots a query slot sees; subclasses are frozen dataclasses.

    Attributes:
      prefix: so many slots at the start are seen by all.
    """

    @property
    def prefix(self) -> int:
        return 0

    @abc.abstractmethod
    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        """Start and end of the interval of keys that queries see besides the prefix, neither ever falling.

        Args:
          query: slot indices, an array of `xp` (jax.numpy or numpy).

        Returns:
          Integers that broadcast against `query`; the start is None where it is 0 for all.
        """

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Booleans of the broadcast shape of `query` and `key` (slot indices)."""
        start, end = self.bounds(query)
        if start is None:
            return key < (jnp.maximum(end, self.prefix) if self.prefix else end)
        seen = (key >= start) & (key < end)
        return seen | (key < self.prefix) if self.prefix else seen

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        """Ranges [start, end) of keys, in order, outside which no query of [first, last) sees any of `slots` keys."""
        (start, _), (_, end) = (self.bounds(np.int64(place), np) for place in (first, last - 1))
        prefix = min(self.prefix, slots)
        start, end = 0 if start is None else int(start), min(int(end), slots)
        if start <= prefix or end <= start:
            return ((0, max(prefix, end if start <= prefix else 0, 1)),)  # never empty
        return ((0, prefix), (start, end)) if prefix else ((start, end),)


@dataclasses.dataclass(frozen=True)
class Causal(Visibility):
    """A query sees itself, everything before it, and the first `text` slots, which see one another."""

    text: int = 0

    @property
    def prefix(self) -> int:
        return self.text

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        return None, query + 1


@dataclasses.dataclass(frozen=True)
class Full(Visibility):
    """Everything sees everything."""

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        return None, query * 0 + (2**31 - 1)

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return (query >= 0) | (key >= 0)


@dataclasses.dataclass(frozen=True)
class CausalFrames(Visibility):
    """Causal over tokens inside a sliding window of frames, after a text prefix that all see.

    A query sees what is before it and itself in its own frame and in the `window` frames before that one: with
    `window=0` attention is local to the frame. Text slots see all text.

    Attributes:
      text: number of text slots, which come first. frame: tokens a frame. window: earlier frames seen.
    """

    text: int
    frame: int
    window: int

    @property
    def prefix(self) -> int:
        return self.text

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        own = _frame(query, self.text, self.frame, xp)
        return self.text + xp.maximum(own - self.window, 0) * self.frame, query + 1


@dataclasses.dataclass(frozen=True)
class FrameWindow(Visibility):
    """Block-causal over frames with look-ahead and a window; a text prefix that all see (specification, section 6).

    Query frame q sees key frames q + look_ahead - 1 - window .. q + look_ahead - 1; text queries see all text and
    frames 0 .. look_ahead - 1.

    Attributes:
      text: number of text slots, which come first.
      frame: tokens a frame.
      look_ahead: A >= 1. window: R, or None for every earlier frame.
    """

    text: int
    frame: int
    look_ahead: int
    window: int | None

    @property
    def prefix(self) -> int:
        return self.text

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        # Text counts as frame 0 for the look-ahead.
        last = _frame(query, self.text, self.frame, xp) + self.look_ahead - 1
        end = self.text + (last + 1) * self.frame
        if self.window is None:
            return None, end
        # A text query has no past to cut off: it sees every frame from 0.
        start = xp.where(query < self.text, 0, xp.maximum(last - self.window, 0))
        return self.text + start * self.frame, end


def _frame(query: Any, text: int, frame: int, xp: Any) -> Any:
    """The frame of a slot; text counts as frame 0."""
    past = xp.maximum(query - text, 0)
    # Not floor division, whose signs a kernel would look after in vain.
    return past // frame if xp is np else jax.lax.div(past, jnp.asarray(frame, past.dtype))
