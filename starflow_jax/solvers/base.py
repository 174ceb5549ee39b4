"""What a solver is: a frozen dataclass that inverts one block, given nothing but its prediction."""

from __future__ import annotations

from typing import Protocol

import flax.struct
import jax

from starflow_jax.flows.block import Predict
from starflow_jax.nn.cache import KVCache


@flax.struct.dataclass
class Solution:
    """The outcome of inverting one stretch of tokens; outcomes are values, not exceptions.

    Attributes:
      x: [B, n, c] float32, in the block's order.
      cache: holds every token but the last; None where several windows were joined.
      starts, lengths: [chunks] int32, first token (counted over the whole sequence) and tokens of each chunk.
      iterations: [chunks] int32, network evaluations spent on each.
      residual: [chunks] float32, the last measured residual (0 where a chunk is exact by construction).
      converged: [chunks] bool; False where `max_iterations` ended the iteration.
      residuals: [chunks, max_iterations] float32, every measured residual, NaN where none was.
    """

    x: jax.Array
    cache: KVCache | None
    starts: jax.Array
    lengths: jax.Array
    iterations: jax.Array
    residual: jax.Array
    converged: jax.Array
    residuals: jax.Array


class Solver(Protocol):
    """Inverts x_i = mean_i(x_<i) + scale_i(x_<i) z_i."""

    def padding(self, count: int, start: int, frame: int) -> int:
        """Slots past the end that solving `count` tokens from `start` on may write."""

    def __call__(
        self, predict: Predict, z: jax.Array, known: jax.Array, cache: KVCache, *, start: int, frame: int
    ) -> Solution:
        """Solves for the tokens of z.

        Args:
          predict: mean and scale of tokens first .. first + n - 1 of z from the n tokens before them.
          z: [B, n, c] float32 noise in the block's order.
          known: [B, k, c], the k >= 1 tokens just before z (the start token included).
          cache: holds everything before the last known token.
          start: place of z's first token in the whole sequence (given frames and earlier windows included).
          frame: tokens a frame.
        """
