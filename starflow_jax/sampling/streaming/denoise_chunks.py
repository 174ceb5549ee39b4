"""Denoises a video while it is sampled: each frame as soon as no later frame can change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from starflow_jax.core.config import DenoiserConfig
from starflow_jax.flows.order import AnyArray


class Chunk(NamedTuple):
    """Frames that are denoised together as one video; of the result, those before index `keep` are dropped."""

    start: int
    length: int
    keep: int


class FinalFrame(NamedTuple):
    """Frame `time` of every video, [B, H, W, C]."""

    time: int
    noisy: jax.Array
    denoised: jax.Array


def chunk_plan(frames: int, chunk: int | None, overlap: int | None) -> tuple[Chunk, ...]:
    """The chunks of `flows.denoise_in_chunks`."""
    if chunk is None or chunk >= frames:
        return (Chunk(0, frames, 0),)
    overlap = chunk - 1 if overlap is None else overlap
    starts = range(0, frames - overlap, chunk - overlap)
    return tuple(Chunk(start, min(chunk, frames - start), overlap if start else 0) for start in starts)


def frames_ahead(denoiser: DenoiserConfig | None) -> int | None:
    """The number of later frames that a denoised frame depends on; None for all, as with the score (no denoiser).

    Each layer attends to look_ahead - 1 later frames. Text tokens attend to as many from the first frame on, which
    does not extend the range.
    """
    if denoiser is None or denoiser.look_ahead is None:
        return None
    return denoiser.layers * (denoiser.look_ahead - 1)


class FrameDenoiser:
    """Takes noisy frames in order and returns denoised frames in order, each as early as it is exact.

    A call of the denoiser takes a whole chunk, with zeros for frames that are not known yet, so that one program serves
    all calls.

    Attributes:
      chunks: see `chunk_plan`.
    """

    def __init__(
        self,
        chunks: tuple[Chunk, ...],
        ahead: int | None,
        denoise: Callable[[tuple[Float[Array, "B H W C"], ...], int], tuple[Float[Array, "B H W C"], ...]],
        unknown: Float[Array, "B H W C"],
    ):
        """Starts without frames.

        Args:
          chunks: the attribute.
          ahead: see `frames_ahead`.
          denoise: maps all frames of a chunk, [B, H, W, C] each, and the index of the first to as many denoised frames.
          unknown: zeros [B, H, W, C].
        """
        self.chunks, self._ahead, self._denoise, self._unknown = chunks, ahead, denoise, unknown
        self._known: dict[int, AnyArray] = {}
        self._pushed = self._chunk = 0
        self._next = 0

    def push(self, frames: tuple[Float[AnyArray, "B H W C"], ...]) -> list[FinalFrame]:
        """Takes the next noisy frames; returns the denoised frames that are final now."""
        for frame in frames:
            self._known[self._pushed] = frame
            self._pushed += 1
        final = []
        while self._chunk < len(self.chunks):
            start, length, _ = self.chunks[self._chunk]
            num_known = min(self._pushed - start, length)
            reach = length if self._ahead is None else self._ahead
            end = start + (length if num_known == length else max(num_known - reach, 0))
            if end > self._next:
                denoised = self._denoise(self._buffer(start, length, num_known), start)
                final += [FinalFrame(i, self._known[i], denoised[i - start]) for i in range(self._next, end)]
                self._next = end
            if num_known < length:
                break
            self._chunk += 1
            if self._chunk < len(self.chunks):
                for index in range(start, self.chunks[self._chunk].start):
                    del self._known[index]
        return final

    def _buffer(self, start: int, length: int, num_known: int) -> tuple[AnyArray, ...]:
        return tuple(self._known[start + i] if i < num_known else self._unknown for i in range(length))
