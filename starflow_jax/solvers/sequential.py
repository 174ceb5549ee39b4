"""Token by token with a key/value cache: the exact inverse (specification, section 4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from starflow_jax.flows.block import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Solution


@dataclasses.dataclass(frozen=True)
class Sequential:
    """One network evaluation a token; exact by construction."""

    def padding(self, count: int, start: int, frame: int) -> int:
        """None: it writes one slot at a time."""
        return 0

    def __call__(
        self, predict: Predict, z: jax.Array, known: jax.Array, cache: KVCache, *, start: int, frame: int
    ) -> Solution:
        """See `Solver`."""

        def step(carry, inputs):
            previous, cache = carry
            index, noise = inputs
            affine, cache = predict(previous, index, cache)
            token = affine.inverse(noise[:, None])
            return (token, cache), token[:, 0]

        count = z.shape[1]
        (_, cache), tokens = jax.lax.scan(step, (known[:, -1:], cache), (jnp.arange(count), jnp.moveaxis(z, 1, 0)))
        return Solution(
            x=jnp.moveaxis(tokens, 0, 1),
            cache=cache,
            starts=jnp.full((1,), start, jnp.int32),
            lengths=jnp.full((1,), count, jnp.int32),
            iterations=jnp.full((1,), count, jnp.int32),
            residual=jnp.zeros((1,)),
            converged=jnp.ones((1,), bool),
            residuals=jnp.full((1, 0), jnp.nan),
        )
