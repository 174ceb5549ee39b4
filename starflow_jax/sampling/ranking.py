"""Exact likelihood put to work: of several samples, the ones the flow itself finds likeliest."""

from __future__ import annotations

import functools

import jax
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, layout_of, placed, spread
from starflow_jax.solvers import SlidingWindow


def log_likelihoods(
    params: Params,
    config: FlowConfig,
    x: np.ndarray,
    cond: np.ndarray | None,
    *,
    given: int = 0,
    window: SlidingWindow | None = None,
    later_cond: np.ndarray | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """log p(x | cond) of samples, in nats, float32 [n]; of the frames after given ones, given those.

    The samples are the flow's own, with the training noise still in them: that is what its density is of. A video that
    was drawn in windows has the density that it was drawn from: that of its first window, times that of every later
    one's new frames given its context. One program is compiled for a shape and kept.

    Args:
      params: of the flow; config: what it is.
      x: float32 [n, H, W, C] or [n, T, H, W, C].
      cond: text states [n, L, text_dim], integer labels [n], or None.
      given: frames P at the beginning of every video that were not drawn; needs a flow that is causal in time.
      window, later_cond: as in `solvers.inverse`, of a video that is longer than the window.
      batch_size: samples at a time; the last batch is filled up with copies.

    Raises:
      ValueError: numbers out of range, or given frames where the flow sees later frames first.
    """
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("given", given, minimum=0)
    check(len(x) > 0, "x must hold at least one sample, got none")
    if given:
        check(x.ndim == 5 and given < x.shape[1], f"given must be below the frames of x {list(x.shape)}, got {given}")
        check(is_frame_causal(config), f"given must be 0 for a flow that is not causal in time, got {given}")
    if window is not None and window.frames < x.shape[1]:
        scored = functools.partial(log_likelihoods, params, config, batch_size=batch_size)
        total = scored(x[:, : window.frames], cond, given=given)
        later = cond if later_cond is None else later_cond
        for end in range(window.frames, x.shape[1], window.frames - window.num_context):
            first = end - window.num_context
            total = total + scored(x[:, first : first + window.frames], later, given=window.num_context)
        return total
    count, batch_size, layout = len(x), min(batch_size, len(x)), layout_of(params)
    scores = []
    for first in range(0, count, batch_size):
        rows = np.resize(np.arange(first, min(first + batch_size, count)), batch_size)
        some = None if cond is None else np.asarray(cond)[rows]
        scores.append(np.asarray(_log_prob(config, given, layout, params, *spread(layout, (x[rows], some)))))
    return np.concatenate(scores)[:count]


def likeliest(scores: np.ndarray, candidates: int, keep: int) -> np.ndarray:
    """Places of the `keep` highest scores of every run of `candidates`, int [n / candidates * keep].

    Runs stay in order; within one the likeliest comes first. Scores that are not a number come last.

    Args:
      scores: [n], n a multiple of `candidates`.
      candidates: K; keep: M, from 1 to K.

    Raises:
      ValueError: numbers out of range.
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
    config: FlowConfig, given: int, layout: Layout | None, params: Params, x: jax.Array, cond: jax.Array | None
) -> jax.Array:
    """[B]; see `log_likelihoods`."""
    flow = merge(abstract(config, layout)[0], params)
    x = placed(layout, x, "batch")
    scores = flow.log_prob(x, cond)
    if given:  # frames are causal: the density of the first ones alone is the flow's of that shorter video
        scores = scores - flow.log_prob(x[:, :given], cond)
    return gathered(layout, scores)
