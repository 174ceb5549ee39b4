"""Mean and scale of one token after another: one compiled program of one shape for each block, in both directions.

The encoder knows all tokens and could compute their contexts in one pass, but the sums of another program round
differently. It therefore calls the decoder's program, token by token with a key/value cache, on the same inputs. Equal
calls of one program give equal bits; `environment` says what must agree for another process to have that program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.block import AutoregressiveBlock
from starflow_jax.flows.order import Grid, block_order, raster_indices
from starflow_jax.flows.parameters import Params
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.streaming.stage_programs import partial_flow


class BlockTokens:
    """One block, with the cache of the tokens that it has read, for a fixed number of rows.

    Args:
      config, params: of the flow, on one device.
      index: the block.
      grid: of the tokens that pass through the cache.
      cond: what the flow reads, with `rows` rows, classes of tokens in raster order; or None.
      rows: sequences that are computed together.

    Attributes:
      order: the raster index of each token of a frame, in the order of the block; int [F].
    """

    def __init__(self, config: FlowConfig, params: Params, index: int, grid: Grid, cond: jax.Array | None, rows: int):
        self.config, self.index, self.grid, self.rows = config, index, grid, rows
        self.is_identity = config.blocks[index].layers == 0
        # A frame of a clip is read like a still image, since the coder reads the frames in their order.
        self.order = raster_indices(block_order(config, index, grid.with_frames(None)), grid.frame)
        self.shape = (rows, config.token_channels)
        if self.is_identity:
            return
        reads = config.num_classes > 0 or config.is_conditioned(index)
        self._cond = cond if reads else None
        if config.token_classes and cond is not None:
            self._cond = cond[:, self.order]
        shared = {"shared": params["shared"]} if config.shared_layers else {}
        self._params = {"blocks": {str(index): params["blocks"][str(index)]}} | shared
        self.restart()

    def restart(self) -> None:
        """Empties the cache, except for the text."""
        if not self.is_identity:
            self._cache = _begin(self.config, self.index, self.grid, self.rows, self._params, self._cond)

    def step(self, previous: np.ndarray | None, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale, float32 [rows, c], of token `first` of the block's order.

        Args:
          previous: the token before it, float32 [rows, c], which enters the cache; None for the first token.
        """
        if self.is_identity or (first == 0 and not self.config.sos):
            return np.zeros(self.shape, np.float32), np.ones(self.shape, np.float32)
        read = np.zeros(self.shape, np.float32) if previous is None else previous
        mean, scale, self._cache = _step(
            self.config, self.index, self.grid, self._params, self._cond, read[:, None], np.int32(first), self._cache
        )
        return np.asarray(mean)[:, 0], np.asarray(scale)[:, 0]

    def steps(
        self, tokens: np.ndarray, first: int = 0, before: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale, float32 [rows, n, c], of known tokens [rows, n, c], from token `first` of the order on.

        Args:
          before: the token before the first, [rows, c]; None where there is none.
        """
        results = []
        for index in range(tokens.shape[1]):
            results.append(self.step(tokens[:, index - 1] if index else before, first + index))
        means, scales = zip(*results, strict=True)
        return np.stack(means, axis=1), np.stack(scales, axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _begin(config: FlowConfig, index: int, grid: Grid, rows: int, params: Params, cond: jax.Array | None) -> KVCache:
    """An empty cache, or that of the text."""
    return _block(config, index, params).predictor(cond, grid, rows, noise_level=config.lowest_level)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=7)
def _step(
    config: FlowConfig,
    index: int,
    grid: Grid,
    params: Params,
    cond: jax.Array | None,
    previous: jax.Array,
    first: jax.Array,
    cache: KVCache,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Mean and scale [rows, 1, c] of token `first`, and the cache with the token before it, [rows, 1, c]."""
    # The cache of the predictor, with the text, is not used: the compiler leaves its computation out.
    predict, _ = _block(config, index, params).predictor(cond, grid, previous.shape[0], noise_level=config.lowest_level)
    start = _block(config, index, params).start_token(previous.shape[0])
    prediction, cache = predict(jnp.where(first == 0, start, previous), first, cache)
    affine = prediction.affine
    return affine.mean.astype(jnp.float32), affine.scale.astype(jnp.float32), cache


def _block(config: FlowConfig, index: int, params: Params) -> AutoregressiveBlock:
    return partial_flow(config, params).block(index)
