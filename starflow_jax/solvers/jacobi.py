"""Block-wise Jacobi iteration with a video-aware start (specification, section 4, arXiv 2511.20462)."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from starflow_jax.config.checks import check_integer, check_real
from starflow_jax.flows.block import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Solution


@dataclasses.dataclass(frozen=True)
class Jacobi:
    """Iterates whole chunks of tokens until they stop moving.

    The map is triangular, so n iterations solve n tokens exactly; far fewer usually do. The tolerance bounds a
    relative *mean-square* change: 1e-3 can leave a relative error near 0.1. A chunk that `max_iterations` ends is
    reported as not converged. The keys and values of the last input iterate stay in the cache.

    Attributes:
      block: chunk length up to and including the end of the first frame.
      growth: chunks that start later are this many times longer.
      tolerance: stop at mean((x_new - x_old)^2) / mean(x_new^2) below this, over the chunk and the batch.
      max_iterations: most iterations of a chunk.
      video_start: chunks past the first frame start from the frame before instead of from the noise.
    """

    block: int = 64
    growth: int = 4
    tolerance: float = 1e-3
    max_iterations: int = 32
    video_start: bool = True

    def __post_init__(self):
        for name in ("block", "growth", "max_iterations"):
            check_integer(f"jacobi.{name}", getattr(self, name), minimum=1)
        check_real("jacobi.tolerance", self.tolerance, minimum=0.0)

    def chunks(self, count: int, start: int, frame: int) -> list[tuple[int, int]]:
        """(first, length) of every chunk of `count` tokens that follow `start` others; first counts from them."""
        found, first = [], 0
        while first < count:
            size = self.block if start + first <= frame else self.block * self.growth
            found.append((first, min(size, count - first)))
            first += size
        return found

    def padding(self, count: int, start: int, frame: int) -> int:
        """A last chunk that is cut short still runs at the length of the others of its kind."""
        return max(size for _, size in _groups(self.chunks(count, start, frame), start, frame))

    def __call__(
        self, predict: Predict, z: jax.Array, known: jax.Array, cache: KVCache, *, start: int, frame: int
    ) -> Solution:
        """See `Solver`; `known` holds at least frame + 1 tokens where start > frame."""
        chunks = self.chunks(z.shape[1], start, frame)
        pad = self.padding(z.shape[1], start, frame)
        widths = ((0, 0), (0, pad), (0, 0))
        before = known.shape[1]
        # One buffer holds the tokens before z, then the current estimate; z[i] stands at before + i.
        state = jnp.pad(jnp.concatenate([known, z], axis=1), widths), cache
        noise = jnp.pad(z, widths)
        reports = []
        # Chunks of one kind run under one scan, so that nothing is compiled once a chunk.
        for members, size in _groups(chunks, start, frame):
            from_frame_before = self.video_start and start + members[0][0] > frame

            def solve(state, chunk, size=size, from_frame_before=from_frame_before):
                return self._solve_chunk(predict, noise, state, chunk, size, before, frame, from_frame_before)

            state, report = jax.lax.scan(solve, state, jnp.asarray(members, jnp.int32))
            reports.append(report)
        (buffer, cache) = state
        iterations, residual, residuals = jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports)
        firsts, lengths = jnp.asarray(chunks, jnp.int32).T
        return Solution(
            x=buffer[:, before : before + z.shape[1]],
            cache=cache,
            starts=firsts + start,
            lengths=lengths,
            iterations=iterations,
            residual=residual,
            # As many iterations as tokens are exact whatever the tolerance.
            converged=(residual < self.tolerance) | (iterations >= lengths),
            residuals=residuals,
        )

    def _solve_chunk(self, predict, noise, state, chunk, size, before, frame, from_frame_before):
        buffer, cache = state
        first, length = chunk[0], chunk[1]
        valid = (jnp.arange(size) < length)[None, :, None]
        z = jax.lax.dynamic_slice_in_dim(noise, first, size, axis=1)
        place = first + before

        def read(buffer, back):
            return jax.lax.dynamic_slice_in_dim(buffer, place - back, size, axis=1)

        def iterate(buffer, cache, previous, number, residuals):
            affine, cache = predict(previous, first, cache)
            old = read(buffer, 0)
            new = jnp.where(valid, affine.inverse(z), old)
            # Sums over the chunk's own tokens; means over them and the batch have the same ratio.
            change = jnp.sum(jnp.where(valid, new - old, 0.0) ** 2)
            # All-zero tokens that did not move have settled: 0 / 0 counts as 0.
            size_of_new = jnp.sum(jnp.where(valid, new, 0.0) ** 2)
            residual = jnp.where((change == 0) & (size_of_new == 0), 0.0, change / size_of_new)
            buffer = jax.lax.dynamic_update_slice_in_dim(buffer, new, place, axis=1)
            return buffer, cache, number + 1, residual, residuals.at[number].set(residual)

        def unfinished(carry):
            _, _, number, residual, _ = carry
            # Written so that a NaN residual counts as unfinished.
            return ~(residual < self.tolerance) & (number < self.max_iterations)

        def body(carry):
            buffer, cache, number, _, residuals = carry
            # The first iteration of a chunk past the first frame reads one frame back; entries of that slice at or
            # beyond the chunk's start still hold the noise.
            back = jnp.where(number == 0, 1 + frame, 1) if from_frame_before else 1
            return iterate(buffer, cache, read(buffer, back), number, residuals)

        carry = (buffer, cache, jnp.int32(0), jnp.float32(jnp.inf), jnp.full(self.max_iterations, jnp.nan))
        buffer, cache, number, residual, residuals = jax.lax.while_loop(unfinished, body, carry)
        return (buffer, cache), (number, residual, residuals)


def _groups(chunks: list[tuple[int, int]], start: int, frame: int) -> list[tuple[list[tuple[int, int]], int]]:
    """Chunks within the first frame and chunks past it, each with the length of its longest."""
    grouped = itertools.groupby(chunks, key=lambda chunk: start + chunk[0] > frame)
    listed = [list(members) for _, members in grouped]
    return [(members, max(length for _, length in members)) for members in listed]
