"""The update of a post-trained flow: one compiled program for a step's samples or pairs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.post_training.objectives import clipped_surrogate, preference_loss
from starflow_jax.sharding.layout import Layout, gathered, placed
from starflow_jax.training.step.accumulation import summed_over_parts
from starflow_jax.training.step.optimizer import DENOISER, apply_updates, gradient_point, init_optimizer
from starflow_jax.training.step.train_step import TrainState, learning_rate

METRICS = ("loss", "clipped", "accuracy", "grad_norm", "skipped")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static part of the training.

    Attributes:
      config: the run that is made, whose `train` is that of the post-training.
      ratio_clip, reuse, parts: as in `PolicyConfig`; preference_beta: as in `PreferenceConfig`.
      layout: of the devices, None for one device.
    """

    config: ExperimentConfig
    ratio_clip: float
    reuse: int
    parts: int
    preference_beta: float
    layout: Layout | None

    @classmethod
    def of(cls, experiment: PostTrainingExperiment, config: ExperimentConfig, layout: Layout | None) -> Objective:
        """That of an experiment. What the compiled program does not read is left out, so that runs share it."""
        policy = experiment.policy
        return cls(config, policy.ratio_clip, policy.reuse, policy.parts, experiment.preference.beta, layout)


class PolicyBatch(NamedTuple):
    """Samples of one step.

    Attributes:
      x: float32 [n, (T,) H, W, C], as the flow drew them; cond: labels [n], text states [n, L, E], or None.
      advantage: float32 [n].
      log_p: float32 [n], under the flow that drew them, by the program of the update: another program rounds otherwise,
        in bfloat16 by nats. None before the update, and where one update reads the samples.
    """

    x: Any
    cond: Any
    advantage: Any
    log_p: Any = None


class PairBatch(NamedTuple):
    """Pairs of a better and a worse example of one step.

    Attributes:
      winner, loser: float32 [m, (T,) H, W, C]; cond: the condition of both.
      winner_ref, loser_ref: float32 [m], log-likelihoods under the reference.
      weight: float32 [m], sums to 1, or to 0 where no pair has a better example.
    """

    winner: Any
    loser: Any
    cond: Any
    winner_ref: Any
    loser_ref: Any
    weight: Any


def trained(params: Params) -> Params:
    """The parameters that are trained: those of the flow. A learned denoiser stays as it is."""
    return {name: value for name, value in params.items() if name != DENOISER}


def initial_state(experiment: PostTrainingExperiment, params: Params) -> TrainState:
    """The state before the first update, from a copy of the parameters of the base run."""
    key = jax.random.key_data(jax.random.key(experiment.seed))
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, init_optimizer(experiment.train, trained(params)), None, key)


def _update(
    objective: Objective, state: TrainState, batch: PolicyBatch | PairBatch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after the updates of one step, and scalars float32, the means over them of `METRICS`.

    An update whose loss or gradients are not finite changes nothing.
    """
    config, train, layout = objective.config, objective.config.train, objective.layout
    definition = abstract(config.flow, layout)[0]
    kept = {name: value for name, value in state.params.items() if name == DENOISER}
    rate = learning_rate(config)(state.step)

    def log_prob(params: Params, x: jax.Array, cond: jax.Array | None) -> jax.Array:
        cond = None if cond is None else placed(layout, cond, "batch")
        return merge(definition, params | kept).log_prob(placed(layout, x, "batch"), cond)

    def contribution(params: Params, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return _loss(objective, functools.partial(log_prob, params), part)

    def one(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], dict[str, jax.Array]]:
        params, moments = carry
        point = gradient_point(train, params, moments)
        part = jax.tree.map(lambda array: array[rows], batch)
        terms, gradients = _summed(contribution, point, part, train.accumulate, layout)
        params, moments, report = apply_updates(
            train, params, moments, gradients, step=state.step, lr=rate, allow=jnp.isfinite(terms["loss"])
        )
        terms |= {"grad_norm": report.grad_norm, "skipped": 1.0 - report.applied.astype(jnp.float32)}
        return (params, moments), terms

    if isinstance(batch, PolicyBatch) and objective.reuse * objective.parts > 1:
        batch = batch._replace(log_p=_drawn_log_p(objective, functools.partial(log_prob, trained(state.params)), batch))
    rows = _rows(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step), len(batch[0]), objective)
    (params, moments), metrics = jax.lax.scan(one, (trained(state.params), state.opt_state), rows)
    new = TrainState(state.step + 1, params | kept, moments, None, state.key)
    if layout is not None:
        new = jax.lax.with_sharding_constraint(new, layout.tree(new))
    return new, gathered(layout, jax.tree.map(jnp.mean, metrics))


# The second one reuses the buffers of the state, which is then gone.
update = functools.partial(jax.jit, static_argnums=0)(_update)
update_in_place = functools.partial(jax.jit, static_argnums=0, donate_argnums=1)(_update)


def _rows(key: jax.Array, count: int, objective: Objective) -> jax.Array:
    """The rows of every update, int32 [reuse * parts, count / parts]; in their order where there is one update."""
    updates = objective.reuse * objective.parts
    if updates == 1:
        return jnp.arange(count)[None]
    keys = jax.random.split(key, objective.reuse)
    return jax.vmap(lambda k: jax.random.permutation(k, count))(keys).reshape(updates, -1)


def _drawn_log_p(
    objective: Objective, log_prob: Callable[[jax.Array, Any], jax.Array], batch: PolicyBatch
) -> jax.Array:
    """log p of the samples under the flow that drew them, float32 [n], as many at once as an update reads."""
    count = objective.parts * objective.config.train.accumulate
    pieces = jnp.arange(len(batch.x)).reshape(-1, count).T
    scores = jax.lax.map(lambda rows: log_prob(*jax.tree.map(lambda a: a[rows], (batch.x, batch.cond))), pieces)
    return scores.T.reshape(-1)


def _loss(
    objective: Objective, log_prob: Callable[[jax.Array, Any], jax.Array], part: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contribution of a part of a batch to the loss, and to its terms."""
    if isinstance(part, PolicyBatch):
        log_p = log_prob(part.x, part.cond)
        drawn_log_p = jax.lax.stop_gradient(log_p) if part.log_p is None else part.log_p
        surrogate = clipped_surrogate(log_p, drawn_log_p, part.advantage, objective.ratio_clip)
        share = 1.0 / objective.config.train.accumulate
        return share * surrogate.loss, {"clipped": share * surrogate.clipped}
    both = jnp.concatenate([part.winner, part.loser])
    cond = None if part.cond is None else jnp.concatenate([part.cond, part.cond])
    winner, loser = jnp.split(log_prob(both, cond), 2)
    found = preference_loss(
        winner - part.winner_ref,
        loser - part.loser_ref,
        part.weight,
        beta=objective.preference_beta,
        dims=part.winner[0].size,
    )
    return found.loss, {"accuracy": found.accuracy}


def _summed(
    contribution: Callable[[Params, Any], tuple[jax.Array, dict[str, jax.Array]]],
    params: Params,
    batch: Any,
    parts: int,
    layout: Layout | None,
) -> tuple[dict[str, jax.Array], Params]:
    """The terms of the loss and its gradients, summed over equal parts of a batch (`train.accumulate`)."""
    differentiated = jax.value_and_grad(contribution, has_aux=True)

    def on_part(part: Any, _: Any = None) -> tuple[dict[str, jax.Array], Params]:
        (loss, terms), gradients = differentiated(params, part)
        return terms | {"loss": loss}, gradients

    return on_part(batch) if parts == 1 else summed_over_parts(on_part, batch, parts=parts, layout=layout)
