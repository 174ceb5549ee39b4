"""Denoising a video while it is still being drawn: each frame as soon as no later one can change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from starflow_jax.core.config import DenoiserConfig


class Chunk(NamedTuple):
    """Frames that are denoised as a video of their own; those before `keep` (counted within it) are dropped."""

    start: int
    length: int
    keep: int


class FinalFrame(NamedTuple):
    """Frame `number` of every video, [B, H, W, C] each."""

    number: int
    noisy: jax.Array
    denoised: jax.Array


def chunk_plan(frames: int, chunk: int | None, overlap: int | None) -> tuple[Chunk, ...]:
    """The chunks of `denoise_in_chunks`."""
    if chunk is None or chunk >= frames:
        return (Chunk(0, frames, 0),)
    overlap = chunk - 1 if overlap is None else overlap
    starts = range(0, frames - overlap, chunk - overlap)
    return tuple(Chunk(start, min(chunk, frames - start), overlap if start else 0) for start in starts)


def frames_ahead(denoiser: DenoiserConfig | None) -> int | None:
    """How many later frames a denoised one depends on; None means all, as those of the score (no denoiser) do.

    Each layer sees look_ahead - 1 frames further. The text, which sees as many from the first frame on, is no
    shortcut.
    """
    if denoiser is None or denoiser.look_ahead is None:
        return None
    return denoiser.layers * (denoiser.look_ahead - 1)


class FrameDenoiser:
    """Takes noisy frames in order and hands out denoised ones in order, each as early as it can be exact.

    A call of the denoiser works on a whole chunk, frames that are not known yet being zero: one program does all.

    Attributes:
      chunks: as `chunk_plan` gives them.
    """

    def __init__(
        self,
        chunks: tuple[Chunk, ...],
        ahead: int | None,
        denoise: Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]],
        unknown: jax.Array,
    ):
        """Begins with no frames.

        Args:
          chunks: the attribute.
          ahead: as `frames_ahead` gives it.
          denoise: maps all frames of a chunk, [B, H, W, C] each, to as many.
          unknown: zeros [B, H, W, C].
        """
        self.chunks, self._ahead, self._denoise, self._unknown = chunks, ahead, denoise, unknown
        self._known: dict[int, jax.Array] = {}
        self._pushed = self._number = 0
        self._next = 0

    def push(self, frames: tuple[jax.Array, ...]) -> list[FinalFrame]:
        """The next noisy frames; returns those that are final by now."""
        for frame in frames:
            self._known[self._pushed] = frame
            self._pushed += 1
        final = []
        while self._number < len(self.chunks):
            start, length, _ = self.chunks[self._number]
            here = min(self._pushed - start, length)
            reach = length if self._ahead is None else self._ahead
            end = start + (length if here == length else max(here - reach, 0))
            if end > self._next:
                denoised = self._denoise(self._buffer(start, length, here))
                final += [FinalFrame(i, self._known[i], denoised[i - start]) for i in range(self._next, end)]
                self._next = end
            if here < length:
                break
            self._number += 1
            if self._number < len(self.chunks):
                for place in range(start, self.chunks[self._number].start):
                    del self._known[place]
        return final

    def _buffer(self, start: int, length: int, here: int) -> tuple[jax.Array, ...]:
        return tuple(self._known[start + i] if i < here else self._unknown for i in range(length))
