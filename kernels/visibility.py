"""Which keys a query sees, as a rule on indices, so that no mask of queries x keys is ever stored.

A rule is a small frozen dataclass with `mask(query, key)`: broadcastable integer arrays of absolute slot indices in,
booleans out. Kernels evaluate it a tile at a time; the reference evaluates it inside a fused comparison.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp


class Visibility(Protocol):
    """A rule that says which key slots a query slot sees."""

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Booleans of the broadcast shape of `query` and `key` (slot indices)."""

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        """Ranges [start, end) of keys, in order, outside which no query of [first, last) sees any of `slots` keys."""


@dataclasses.dataclass(frozen=True)
class Causal:
    """A query sees itself and everything before it."""

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return key <= query

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        return ((0, min(last, slots)),)


@dataclasses.dataclass(frozen=True)
class Full:
    """Everything sees everything."""

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.ones(jnp.broadcast_shapes(query.shape, key.shape), bool)

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        return ((0, slots),)


@dataclasses.dataclass(frozen=True)
class FrameWindow:
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

    def mask(self, query: jax.Array, key: jax.Array) -> jax.Array:
        # Text counts as frame 0 for the look-ahead and is seen by all.
        query_frame = jnp.maximum(query - self.text, 0) // self.frame
        key_frame = (key - self.text) // self.frame
        last = query_frame + self.look_ahead - 1
        seen = key_frame <= last
        if self.window is not None:
            # A text query has no past to cut off: it sees every frame from 0.
            seen &= (key_frame >= last - self.window) | (query < self.text)
        return seen | (key < self.text)

    def spans(self, first: int, last: int, slots: int) -> tuple[tuple[int, int], ...]:
        frame_of = [max(slot - self.text, 0) // self.frame for slot in (first, last - 1)]
        end = min(self.text + (frame_of[1] + self.look_ahead) * self.frame, slots)
        start = 0
        if self.window is not None and first >= self.text:
            start = max(0, frame_of[0] + self.look_ahead - 1 - self.window)
        start = self.text + start * self.frame
        return ((0, end),) if start == self.text else ((0, self.text), (start, end))
