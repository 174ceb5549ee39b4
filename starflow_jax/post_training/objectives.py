"""The objectives of post-training as functions of exact log-likelihoods: policy gradient and preferences.

For a flow p, its frozen reference p_ref and a reward r, the policy gradient maximises

    E_p[r(x)] - beta KL(p || p_ref),    KL(p || p_ref) = E_p[log p(x) - log p_ref(x)].

Both log-likelihoods are exact, so the KL is estimated without bias by the mean of the log-ratio over samples of p, and
r - beta (log p - log p_ref) is a reward whose score-function gradient is that of the whole objective. Its maximum over
all densities is p proportional to p_ref exp(r / beta).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.choices import AdvantageScale

_SMALLEST_DEVIATION = 1e-6


def advantages(
    reward: Float[np.ndarray, " n"],
    log_ratio: Float[np.ndarray, " n"],
    *,
    group_size: int,
    beta: float,
    scale: AdvantageScale,
) -> Float[np.ndarray, " n"]:
    """What a sample is better than the others of its group, float32 [n]: the weight of its score-function gradient.

    The baseline of a sample is the mean over the other samples of its group, which leaves the gradient unbiased.

    Args:
      reward: [n], groups one after another.
      log_ratio: log p - log p_ref of the samples, in nats; its part of the advantage has the factor -beta and is not
        scaled.
      group_size: samples of a group, at least 2; it divides n.
      beta: weight of the KL.
      scale: "standardised" divides the part of the reward by the standard deviation of the group; a group of equal
        rewards has none and counts with 0.
    """
    rewards = np.asarray(reward, np.float64).reshape(-1, group_size)
    ratios = np.asarray(log_ratio, np.float64).reshape(-1, group_size)
    correction = group_size / (group_size - 1)

    def centred(values: np.ndarray) -> np.ndarray:
        return correction * (values - values.mean(axis=1, keepdims=True))

    gain = centred(rewards)
    if scale == "standardised":
        deviation = rewards.std(axis=1, keepdims=True)
        gain = np.where(deviation > _SMALLEST_DEVIATION, gain / np.maximum(deviation, _SMALLEST_DEVIATION), 0.0)
    total: np.ndarray = (gain - beta * centred(ratios)).reshape(-1).astype(np.float32)
    return total


class Surrogate(NamedTuple):
    """The loss of a policy gradient and the share of samples whose gradient the clip removes, float32 []."""

    loss: jax.Array
    clipped: jax.Array


def clipped_surrogate(
    log_p: Float[Array, " n"], drawn_log_p: Float[Array, " n"], advantage: Float[Array, " n"], clip: float
) -> Surrogate:
    """The loss - mean(min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)) with ratio = p / p_drawn (arXiv 1707.06347).

    Where p is the flow that drew the samples every ratio is 1, and the gradient is that of - mean(A log p).

    Args:
      log_p: log-likelihoods under the flow that is trained, in nats; differentiated.
      drawn_log_p: under the flow that drew the samples.
      advantage: [n].
      clip: above 0.
    """
    ratio = jnp.exp(log_p - drawn_log_p)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)
    clipped = jnp.where(advantage > 0, ratio > 1.0 + clip, ratio < 1.0 - clip) & (advantage != 0)
    return Surrogate(-jnp.mean(gain), jnp.mean(clipped.astype(jnp.float32)))


class Preference(NamedTuple):
    """The loss of preferences and the share of pairs whose winner has the larger log-ratio, float32 []."""

    loss: jax.Array
    accuracy: jax.Array


def preference_loss(
    winner: Float[Array, " n"], loser: Float[Array, " n"], weight: Float[Array, " n"], *, beta: float, dims: int
) -> Preference:
    """The weighted sum of -log sigmoid(beta / D (winner - loser)) (direct preference optimisation, arXiv 2305.18290).

    Args:
      winner, loser: log p - log p_ref of both examples of every pair, in nats.
      weight: of the pairs: they sum to 1 over a batch, or to 0 where no pair has a better example.
      beta: as in `PreferenceConfig`; dims: D, the number of values of an example.
    """
    margin = winner - loser
    loss = jnp.sum(weight * jax.nn.softplus(-beta / dims * margin))
    return Preference(loss, jnp.sum(weight * (margin > 0)))


class Ranked(NamedTuple):
    """Pairs of samples: int [m] indices of the better and the worse ones, and their weights float32 [m]."""

    winners: np.ndarray
    losers: np.ndarray
    weight: np.ndarray


def ranked_pairs(reward: Float[np.ndarray, " n"], group_size: int) -> Ranked:
    """Pairs within groups: the best sample with the worst, the second best with the second worst, and so on.

    A pair of equal rewards has weight 0; the others have equal weights, which sum to 1.

    Args:
      reward: [n], groups one after another; group_size: even, it divides n.
    """
    table = np.asarray(reward, np.float64).reshape(-1, group_size)
    order = np.argsort(-table, axis=1, kind="stable")
    first = group_size * np.arange(len(table))[:, None]
    winners = (first + order[:, : group_size // 2]).reshape(-1)
    losers = (first + order[:, ::-1][:, : group_size // 2]).reshape(-1)
    flat = table.reshape(-1)
    better = flat[winners] > flat[losers]
    return Ranked(winners, losers, (better / max(int(better.sum()), 1)).astype(np.float32))
