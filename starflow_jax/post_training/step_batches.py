"""The batch of one step: drawn samples with their advantages, ranked samples, or pairs of a file."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from starflow_jax.post_training.drawn_samples import DrawnSamples
from starflow_jax.post_training.objectives import advantages, ranked_pairs
from starflow_jax.post_training.policy_update import PairBatch, PolicyBatch
from starflow_jax.post_training.post_training_setup import PostTrainingSetup
from starflow_jax.training.step.inputs import condition


def policy_batch(setup: PostTrainingSetup, drawn: DrawnSamples) -> PolicyBatch:
    """The samples of a step for the policy gradient."""
    experiment = setup.experiment
    assert drawn.reward is not None  # the experiment names a reward
    advantage = advantages(
        drawn.reward,
        drawn.log_ratio,
        group_size=experiment.group_size,
        beta=experiment.policy.beta,
        scale=experiment.policy.advantage,
    )
    return PolicyBatch(drawn.x, drawn.cond, advantage)


def ranked_batch(setup: PostTrainingSetup, drawn: DrawnSamples) -> PairBatch:
    """Pairs of samples of a step, the better one by the reward."""
    assert drawn.reward is not None  # the experiment names a reward
    winners, losers, weight = ranked_pairs(drawn.reward, setup.experiment.group_size)
    cond = None if drawn.cond is None else drawn.cond[winners]
    return PairBatch(drawn.x[winners], drawn.x[losers], cond, drawn.log_ref[winners], drawn.log_ref[losers], weight)


def file_batch(setup: PostTrainingSetup, step: int) -> PairBatch:
    """The pairs of a step from the file, with the noise that the flow was trained on."""
    pairs, sampler, experiment = setup.pairs, setup.sampler, setup.experiment
    assert pairs is not None
    count = experiment.train.batch_size // 2
    rows = pairs.rows(experiment.seed, step, count)
    winner, loser = pairs.noisy(rows, sampler.run.config, experiment.seed, step)
    if setup.pair_text is not None:
        cond = setup.pair_text[rows]
    else:
        labels = condition(jnp.asarray(pairs.label[rows]), sampler.run.config.flow)
        cond = None if labels is None else np.asarray(labels)
    winner_ref, loser_ref = (sampler.log_likelihoods(sampler.run.params, x, cond) for x in (winner, loser))
    return PairBatch(winner, loser, cond, winner_ref, loser_ref, np.full(count, 1.0 / count, np.float32))
