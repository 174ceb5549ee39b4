"""Attention masks as rules on indices, so that no mask of queries x keys is stored.

Visible to a query are the slots of the prefix and those of one interval [start, end), and neither bound decreases from
one query to the next. From these bounds follow the mask of a tile, whether any or all of a block is visible, and the
ranges that hold all visible keys. Kernels evaluate the rule a tile at a time, the reference inside a fused comparison.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Visibility(abc.ABC):
    """A visibility rule; subclasses are frozen dataclasses.

    Attributes:
      prefix: number of slots at the start that are visible to every query.
    """

    @property
    def prefix(self) -> int:
        return 0

    @abc.abstractmethod
    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        """Start and end of the interval of keys that are visible besides the prefix; neither decreases with the query.

        Args:
          query: slot indices, an array of `xp` (jax.numpy or numpy).

        Returns:
          Integers that broadcast against `query`; the start is None where it is 0 for every query.
        """

    def mask(self, query: Int[Array, "..."], key: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Whether keys are visible to queries (slot indices), in the broadcast shape of both."""
        start, end = self.bounds(query)
        if start is None:
            return key < (jnp.maximum(end, self.prefix) if self.prefix else end)
        visible = (key >= start) & (key < end)
        return visible | (key < self.prefix) if self.prefix else visible

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        """Ranges [start, end), in order, that hold all of `slots` keys that are visible to queries [first, last)."""
        (start, _), (_, end) = (self.bounds(np.int64(query), np) for query in (first, last - 1))
        prefix = min(self.prefix, slots)
        start, end = 0 if start is None else int(start), min(int(end), slots)
        if start <= prefix or end <= start:
            return ((0, max(prefix, end if start <= prefix else 0, 1)),)  # never empty
        return ((0, prefix), (start, end)) if prefix else ((start, end),)


@dataclasses.dataclass(frozen=True)
class Causal(Visibility):
    """Causal: the query's slot and all earlier slots are visible, and the first `text` slots are visible to all."""

    text: int = 0

    @property
    def prefix(self) -> int:
        return self.text

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        return None, query + 1


@dataclasses.dataclass(frozen=True)
class Full(Visibility):
    """Every key is visible to every query."""

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        return None, query * 0 + (2**31 - 1)

    def mask(self, query: Int[Array, "..."], key: Int[Array, "..."]) -> Bool[Array, "..."]:
        return (query >= 0) | (key >= 0)


@dataclasses.dataclass(frozen=True)
class CausalFrames(Visibility):
    """Causal over tokens inside a sliding window of frames, after a text prefix that is visible to all.

    Visible are the slots up to the query's own in its frame and in the `window` frames before it: with `window=0`
    attention is local to the frame. All text is visible to text.

    Attributes:
      text: number of text slots, which come first. frame: tokens per frame. window: number of earlier frames.
    """

    text: int
    frame: int
    window: int

    @property
    def prefix(self) -> int:
        return self.text

    def bounds(self, query: Any, xp: Any = jnp) -> tuple[Any, Any]:
        frame = _frame(query, self.text, self.frame, xp)
        return self.text + xp.maximum(frame - self.window, 0) * self.frame, query + 1


@dataclasses.dataclass(frozen=True)
class FrameWindow(Visibility):
    """Block-causal over frames with look-ahead and a window; the text prefix is visible to all (specification,
    section 6).

    Visible to frame q are frames q + look_ahead - 1 - window .. q + look_ahead - 1; to text, all text and frames
    0 .. look_ahead - 1.

    Attributes:
      text: number of text slots, which come first.
      frame: tokens per frame.
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
        # The window does not apply to text queries: every frame from 0 is visible.
        start = xp.where(query < self.text, 0, xp.maximum(last - self.window, 0))
        return self.text + start * self.frame, end


def _frame(query: Any, text: int, frame: int, xp: Any) -> Any:
    """The frame of a slot; text counts as frame 0."""
    past = xp.maximum(query - text, 0)
    # Truncating division, because floor division adds sign checks to a kernel that are never needed.
    return past // frame if xp is np else jax.lax.div(past, jnp.asarray(frame, past.dtype))
