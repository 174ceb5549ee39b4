"""Terms of log p of rows (pairs of example and noise draw), with one compiled program for each flow and shape.

The noise level and the number of levels are arguments of the program: cells that differ in them, in the data (of one
shape) or in the checkpoint of a run share it. The noise of a row depends on the key, the draw and the example's index.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.evaluation.likelihood.frame_likelihood import token_terms
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, placed
from starflow_jax.sweeps.grid import Noise
from starflow_jax.training.step.frozen_autoencoder import Frozen


@flax.struct.dataclass
class Rows:
    """A batch of rows.

    Attributes:
      image: integers or latents [B, ...]; index: of the example, int32 [B]; draw: of the noise, int32 [B].
      cond: condition of the flow [B, ...], or None.
    """

    image: jax.Array | np.ndarray
    index: jax.Array | np.ndarray
    draw: jax.Array | np.ndarray
    cond: jax.Array | np.ndarray | None


@flax.struct.dataclass
class Scaling:
    """Parameters of the noise: x = (image + inside u) factor + shift + sigma eps, u uniform in [0, 1), eps normal.

    With `inside` 1 this is `data.dequantise`; with 0 it is Gaussian noise as in `training.step.inputs.noisy_pixels`.
    A noise-conditioned flow reads `level`.
    """

    inside: np.ndarray | jax.Array
    factor: np.ndarray | jax.Array
    shift: np.ndarray | jax.Array
    sigma: np.ndarray | jax.Array
    level: np.ndarray | jax.Array

    @classmethod
    def from_noise(cls, noise: Noise, levels: int) -> Scaling:
        """The scaling for data of so many levels; 0 for latents, which are not rescaled."""
        if noise.kind == "uniform":
            uniform, factor, shift = 1.0, 2.0 / levels, -1.0
        else:
            uniform, factor, shift = (0.0, 2.0 / (levels - 1), -1.0) if levels else (0.0, 1.0, 0.0)
        return cls(*(np.asarray(value, np.float32) for value in (uniform, factor, shift, noise.sigma, noise.level)))


def noisy(key: jax.Array, rows: Rows, image: jax.Array, scaling: Scaling) -> jax.Array:
    """The input of the flow, float32 of the shape of `image`. Traceable."""

    def one(image: jax.Array, index: jax.Array, draw: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(jax.random.fold_in(key, draw), index)
        offset = scaling.inside * jax.random.uniform(row_key, image.shape)
        x = (image.astype(jnp.float32) + offset) * scaling.factor + scaling.shift
        return x + scaling.sigma * jax.random.normal(row_key, image.shape)

    return jax.vmap(one)(image, jnp.asarray(rows.index), jnp.asarray(rows.draw))


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
    """The terms of log p of every token of every row, float32 nats [1 + K, B, (T,) h, w].

    See `frame_likelihood.token_terms`.

    Args:
      config: of the flow; layout: of its parameters; pixel_levels: of the pixels that `encoder` encodes.
    """
    flow = merge(abstract(config, layout)[0], params)
    image = jnp.asarray(rows.image)
    if encoder is not None:
        image = encoder.latents(image, pixel_levels, layout)
    x = placed(layout, noisy(key, rows, image, scaling), "batch")
    cond = None if rows.cond is None else jnp.asarray(rows.cond)
    noise_level = None if config.noise_levels is None else jnp.asarray(scaling.level)
    return gathered(layout, jnp.stack(token_terms(flow, x, cond, noise_level=noise_level)))


def reduce_tokens(terms: np.ndarray, frames: int) -> np.ndarray:
    """The stored values of a batch: float64 [B, 1 + K + frames], the terms summed over tokens, and log p of each frame.

    Tokens are summed in float64 on the host, so that results do not depend on a device's order of summation.

    Args:
      terms: [1 + K, B, (T,) h, w]; frames: T, or 0 without likelihoods of frames.
    """
    exact = terms.astype(np.float64)
    totals = exact.reshape(*exact.shape[:2], -1).sum(axis=2).T
    if not frames:
        return totals
    by_frame = exact.reshape(*exact.shape[:3], -1).sum(axis=(0, 3))
    return np.concatenate([totals, by_frame], axis=1)


class Programs:
    """Compiled programs of a sweep, so that each is compiled once and compile time is not counted as computing time."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Callable[..., jax.Array]] = {}

    def __call__(self, config: FlowConfig, layout: Layout | None, levels: int, *arguments: Any) -> Callable[[], Any]:
        """A function that runs `row_terms` on these arguments, already compiled."""
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
    """Places a batch on the devices; this process holds its share of the rows (`Layout.share`)."""
    if layout is None:
        return rows
    return jax.tree.map(lambda array: layout.assemble(np.asarray(array)), rows)
