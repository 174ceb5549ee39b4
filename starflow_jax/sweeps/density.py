"""From rows (examples, each with its draw of the noise) to the terms of log p, one compiled program a flow and shape.

Noise level and number of levels are arguments of the program: cells that differ in them, or in data of one shape, or in
the checkpoint of a run, share it. The noise of a row depends on the key, the draw and the example's place alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.evaluation.likelihood.frame_likelihood import token_terms
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, placed
from starflow_jax.sweeps.grid import Noise
from starflow_jax.training.step.frozen_autoencoder import Frozen


@flax.struct.dataclass
class Rows:
    """A batch.

    Attributes:
      image: integers or latents [B, ...]; place, draw: int32 [B]; cond: what the flow reads [B, ...], or None.
    """

    image: jax.Array | np.ndarray
    place: jax.Array | np.ndarray
    draw: jax.Array | np.ndarray
    cond: jax.Array | np.ndarray | None


@flax.struct.dataclass
class Scaling:
    """Noise as numbers: x = (image + inside u) factor + shift + sigma eps, u uniform in [0, 1), eps normal.

    With `inside` 1 that is `data.dequantise`, with 0 what `training.step.inputs.noisy_pixels` does with Gaussian noise.
    """

    inside: np.ndarray | jax.Array
    factor: np.ndarray | jax.Array
    shift: np.ndarray | jax.Array
    sigma: np.ndarray | jax.Array

    @classmethod
    def of(cls, noise: Noise, levels: int) -> Scaling:
        """levels: values of a pixel; 0 of latents, which are taken as they are."""
        if noise.kind == "uniform":
            inside, factor, shift = 1.0, 2.0 / levels, -1.0
        else:
            inside, factor, shift = (0.0, 2.0 / (levels - 1), -1.0) if levels else (0.0, 1.0, 0.0)
        return cls(*(np.asarray(value, np.float32) for value in (inside, factor, shift, noise.sigma)))


def noisy(key: jax.Array, rows: Rows, image: jax.Array, scaling: Scaling) -> jax.Array:
    """What the flow reads, float32 of the shape of `image`. Traceable."""

    def one(image: jax.Array, place: jax.Array, draw: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, draw), place)
        inside = scaling.inside * jax.random.uniform(own, image.shape)
        x = (image.astype(jnp.float32) + inside) * scaling.factor + scaling.shift
        return x + scaling.sigma * jax.random.normal(own, image.shape)

    return jax.vmap(one)(image, jnp.asarray(rows.place), jnp.asarray(rows.draw))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def row_terms(
    config: FlowConfig,
    layout: Layout | None,
    pixel_levels: int,
    params: Params,
    encoder: Frozen | None,
    key: jax.Array,
    scaling: Scaling,
    rows: Rows,
) -> jax.Array:
    """The terms of log p of every token of every row, float32 nats [1 + K, B, (T,) h, w]; see `frames.token_terms`.

    Args:
      config: of the flow; layout: over which it lies; pixel_levels: of the pixels that `encoder` makes latents of.
    """
    flow = merge(abstract(config, layout)[0], params)
    image = jnp.asarray(rows.image)
    if encoder is not None:
        image = encoder.latents(image, pixel_levels, layout)
    x = placed(layout, noisy(key, rows, image, scaling), "batch")
    cond = None if rows.cond is None else jnp.asarray(rows.cond)
    return gathered(layout, jnp.stack(token_terms(flow, x, cond)))


def reduced(terms: np.ndarray, frames: int) -> np.ndarray:
    """What is kept of a batch: float64 [B, 1 + K + frames], the terms summed over tokens, then log p of every frame.

    Sums of many tokens are taken in float64, so that they do not depend on how a device would order them.

    Args:
      terms: [1 + K, B, (T,) h, w]; frames: T, or 0 where frames are not told apart.
    """
    exact = terms.astype(np.float64)
    whole = exact.reshape(*exact.shape[:2], -1).sum(axis=2).T
    if not frames:
        return whole
    by_frame = exact.reshape(*exact.shape[:3], -1).sum(axis=(0, 3))
    return np.concatenate([whole, by_frame], axis=1)


class Programs:
    """Compiled programs of a sweep by what they depend on, so that compiling is done, and timed, once and apart."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Callable[..., jax.Array]] = {}

    def __call__(self, config: FlowConfig, layout: Layout | None, levels: int, *arguments: Any) -> Callable[[], Any]:
        """`row_terms` of these arguments, compiled by now and not run."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves)
        name = (config, layout, levels, structure, shapes)
        if name not in self._compiled:
            self._compiled[name] = row_terms.lower(config, layout, levels, *arguments).compile()
        compiled = self._compiled[name]
        return lambda: compiled(*arguments)

    def __len__(self) -> int:
        return len(self._compiled)


def placed_rows(layout: Layout | None, rows: Rows) -> Rows:
    """A batch on the devices, of which this process has its share of the rows (`Layout.share`)."""
    if layout is None:
        return rows
    return jax.tree.map(lambda array: layout.assemble(np.asarray(array)), rows)
