"""Ranks samples by their exact likelihood under the flow."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, placed, spread, tree_layout
from starflow_jax.solvers import SlidingWindow


def log_likelihoods(
    params: Params,
    config: FlowConfig,
    x: Float[np.ndarray | Array, "B *sample"],
    cond: Shaped[np.ndarray | Array, "B ..."] | None,
    *,
    given: int = 0,
    window: SlidingWindow | None = None,
    later_cond: Shaped[np.ndarray | Array, "B ..."] | None = None,
    batch_size: int = 64,
    noise_level: float | None = None,
    lengths: Int[np.ndarray, "B"] | None = None,
) -> Float[np.ndarray, " n"]:
    """log p(x | cond) of samples in nats, float32 [n]; with given frames, of the frames after them given these.

    The samples must be those before denoising, which the density of the flow is defined on. The density of a video that
    was sampled in windows is that of the first window, times those of the new frames of every later window given its
    context. One program is compiled for each shape and reused.

    Args:
      params: of the flow; config: its configuration.
      x: float32 [n, H, W, C] or [n, T, H, W, C].
      cond: text states [n, L, text_dim], integer labels [n], or None.
      given: the number P of given frames at the start of every video; needs a flow that is causal in time.
      window, later_cond: as in `solvers.inverse`, for videos that are longer than the window.
      batch_size: samples scored together; the last batch is padded with copies.
      noise_level: that a noise-conditioned flow reads; None for its highest one, at which it samples.
      lengths: of vectors with padding, as in `Flow.forward`.

    Raises:
      ValueError: an argument out of range, or given frames for a flow that is not causal in time.
    """
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("given", given, minimum=0)
    check(len(x) > 0, "x must contain at least one sample, got none")
    if given:
        check(x.ndim == 5 and given < x.shape[1], f"given must be below the frames of x {list(x.shape)}, got {given}")
        check(is_frame_causal(config), f"given must be 0 for a flow that is not causal in time, got {given}")
    if window is not None and window.frames < x.shape[1]:
        scored = functools.partial(log_likelihoods, params, config, batch_size=batch_size, noise_level=noise_level)
        total = scored(x[:, : window.frames], cond, given=given)
        later = cond if later_cond is None else later_cond
        for end in range(window.frames, x.shape[1], window.frames - window.num_context):
            first = end - window.num_context
            total = total + scored(x[:, first : first + window.frames], later, given=window.num_context)
        return total
    count, batch_size, layout = len(x), min(batch_size, len(x)), tree_layout(params)
    scores, level = [], None if noise_level is None else np.float32(noise_level)
    for first in range(0, count, batch_size):
        rows = np.resize(np.arange(first, min(first + batch_size, count)), batch_size)
        cond_rows = None if cond is None else np.asarray(cond)[rows]
        arrays = spread(layout, (x[rows], cond_rows, level, None if lengths is None else lengths[rows]))
        scores.append(np.asarray(_log_prob(config, given, layout, params, *arrays)))
    return np.concatenate(scores)[:count]


def likeliest(scores: Float[np.ndarray, "..."], candidates: int, keep: int) -> Int[np.ndarray, "kept"]:
    """Indices of the `keep` highest scores of every group of `candidates` scores, int [n / candidates * keep].

    Groups stay in order; within a group scores descend. NaN comes last.

    Args:
      scores: [n], n a multiple of `candidates`.
      candidates: K; keep: M, from 1 to K.

    Raises:
      ValueError: an argument out of range.
    """
    check_integer("candidates", candidates, minimum=1)
    check_integer("keep", keep, minimum=1)
    check(keep <= candidates, f"keep must be at most candidates={candidates}, got {keep}")
    check(
        scores.ndim == 1 and len(scores) % candidates == 0,
        f"scores must be [n] with n a multiple of candidates={candidates}, got {list(scores.shape)}",
    )
    table = np.where(np.isnan(scores), -np.inf, scores).reshape(-1, candidates)
    best = np.argsort(-table, axis=1, kind="stable")[:, :keep]
    return (best + candidates * np.arange(len(table))[:, None]).reshape(-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _log_prob(
    config: FlowConfig,
    given: int,
    layout: Layout | None,
    params: Params,
    x: Float[Array, "B *sample"],
    cond: Shaped[Array, "B ..."] | None,
    noise_level: Float[Array, ""] | None,
    lengths: Int[Array, "B"] | None,
) -> Float[Array, " B"]:
    """[B]; see `log_likelihoods`."""
    flow = merge(abstract(config, layout)[0], params)
    x = placed(layout, x, "batch")
    scores = flow.log_prob(x, cond, noise_level=noise_level, lengths=lengths)
    if given:  # a flow that is causal in time gives the density of the first frames as that of a shorter video
        scores = scores - flow.log_prob(x[:, :given], cond, noise_level=noise_level)
    return gathered(layout, scores)
