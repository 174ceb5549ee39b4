"""Sums over equal parts of a batch, one after another, which take the memory of one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from starflow_jax.sharding.layout import Layout, placed

T = TypeVar("T")


def summed_over_parts(
    function: Callable[[Any, jax.Array], T], batch: Any, *, parts: int, layout: Layout | None = None
) -> T:
    """The sum of `function` over the parts of a batch.

    Args:
      function: of a part of the batch and its index, 0 to parts - 1; returns a pytree of arrays, those of parameters
        included, which keep their layout.
      batch: a pytree of arrays [B, ...].
      parts: number of parts, a divisor of B.
      layout: of the devices, None for one.
    """

    def cut(array: jax.Array) -> jax.Array:
        # Every part takes some rows of each device, so that no row moves between devices.
        rows = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
        return jnp.moveaxis(placed(layout, rows, "batch"), 1, 0)

    def on_part(index: jax.Array) -> T:
        return function(jax.tree.map(lambda piece: piece[index], pieces), index)

    pieces = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(on_part, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    if layout is not None:
        zeros = jax.lax.with_sharding_constraint(zeros, layout.tree(zeros))
    total: T
    total, _ = jax.lax.scan(
        lambda sums, index: (jax.tree.map(jnp.add, sums, on_part(index)), None), zeros, jnp.arange(parts)
    )
    return total
