"""Exact log-likelihood of a video by frame and by token.

A temporally causal flow factorises as log p(x) = sum over t of log p(frame t | frames before t): every block maps a
frame with parameters that depend on that frame and on earlier ones alone, so frame t of z and of every logdet is a
function of frames up to t. One parallel pass gives all of these conditionals at once.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.flows import Flow
from starflow_jax.flows.order import Grid


def token_log_probs(flow: Flow, x: jax.Array, cond: jax.Array | None = None) -> jax.Array:
    """The log-likelihood of data, split over its tokens.

    A token's share is log N of its z plus the logdets of all blocks at its position. The sum over all tokens is
    `flow.log_prob`; the sum over a frame of a frame-causal flow is log p(frame | earlier frames, cond). The share of a
    token within a frame is not a conditional density, since blocks read a frame in both directions.

    Args:
      x: [B, H, W, C] images or [B, T, H, W, C] video; cond: as for `Flow.forward`.

    Returns:
      float32 nats [B, h, w] or [B, T, h, w], h and w the rows and columns of tokens.

    Raises:
      ValueError: as `Flow.forward`.
    """
    # Added one by one, because the compiler would choose the order of a sum over the stacked terms.
    prior, *blocks = token_terms(flow, x, cond)
    for logdet in blocks:
        prior = prior + logdet
    return prior


def token_terms(
    flow: Flow, x: jax.Array, cond: jax.Array | None = None, *, noise_level: jax.Array | float | None = None
) -> list[jax.Array]:
    """The terms of `token_log_probs`: log N(z; 0, I), then the logdet of every block, 0 for an identity block.

    The logdet of a pixel map counts to block 0.

    Args:
      x, cond: as for `token_log_probs`; noise_level: as for `Flow.forward`.

    Returns:
      1 + K arrays, each float32 nats [B, h, w] or [B, T, h, w], the tokens in raster order.

    Raises:
      ValueError: as `Flow.forward`.
    """
    output, grid = flow.forward(x, cond, noise_level=noise_level), Grid.from_shape(flow.config, x.shape)
    z = output.tokens[-1].astype(jnp.float32)
    prior = -0.5 * jnp.sum(z**2, axis=-1) - 0.5 * z.shape[-1] * math.log(2.0 * math.pi)
    terms = [prior]
    for index, logdet in enumerate(output.logdets):
        if flow.blocks[index].is_identity:
            terms.append(jnp.zeros_like(prior))
            continue
        # Logdets are in the order in which the block reads the tokens.
        block_grid, _ = flow.block_grid(index, grid)
        ordered = logdet.reshape(-1, block_grid.tokens, logdet.shape[-1])
        terms.append(jnp.sum(flow.from_block(index, ordered, grid, x.shape[0]), axis=-1))
    if output.map_logdet is not None:
        terms[1] = terms[1] + jnp.sum(flow.tokens_of(output.map_logdet), axis=-1)
    return terms


def window_starts(frames: int, window: int, context: int) -> list[int]:
    """First frames of the windows in which a video that is longer than those of training is scored.

    All frames of the first window are scored; in every other window the first `context` frames are given and the later
    ones are scored. Such a video is also sampled in windows (specification, section 4): with the same context and
    conditions, these are the conditional densities that it is sampled from.

    Raises:
      ValueError: a number out of range, or a context that leaves no frame of a window to score.
    """
    check_integer("frames", frames, minimum=1)
    check_integer("window", window, minimum=1)
    check_integer("context", context, minimum=0)
    check(context < window, f"context must be below window={window}, got {context}")
    return [0, *range(window - context, frames - context, window - context)]


def cut_windows(x: np.ndarray, window: int, context: int) -> np.ndarray:
    """A video [T, ...] as the windows of `window_starts`, [n, window, ...]; frames beyond its end are zero.

    Padding at the end changes no score of a frame-causal flow, so videos of every length share one program.
    """
    starts = window_starts(len(x), window, context)
    padded = np.zeros((starts[-1] + window, *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    return np.stack([padded[start : start + window] for start in starts])


def join_windows(values: np.ndarray, frames: int, context: int) -> np.ndarray:
    """Joins values of the frames of windows [n, window, ...] to one array [frames, ...] with each frame once."""
    return np.concatenate([values[0], *(window[context:] for window in values[1:])])[:frames]
