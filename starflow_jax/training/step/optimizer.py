"""The update of two groups of parameters, with gradient clipping, skipped updates and an exponential moving average.

The flow and its learned denoiser are two groups: each has its own learning rate, moments and gradient norm, as in the
original. The flow has the optimizer that `train.optimizer` names, by default AdamW, and the denoiser has AdamW.
TARFlow's `prior_variance` is a statistic of the latents and belongs to neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from starflow_jax.core.config.optimizer_config import OptimizerConfig
from starflow_jax.core.config.train_config import TrainConfig
from starflow_jax.training.step.gradient_transformations import Params, descent, scaled, schedule_free

DENOISER = "denoiser"
STATISTICS = ("prior_variance",)


class UpdateReport(NamedTuple):
    """Global norm of the gradient before clipping, and whether the update was applied, for each group.

    Attributes:
      grad_norm: float32 []; applied: bool [].
      denoiser_grad_norm, denoiser_applied: the same for the denoiser, None in a flow without one.
    """

    grad_norm: jax.Array
    applied: jax.Array
    denoiser_grad_norm: jax.Array | None = None
    denoiser_applied: jax.Array | None = None


def groups(params: Params) -> dict[str, Params]:
    """The trained parameters by group: "flow", and "denoiser" if there is one."""
    flow = {name: value for name, value in params.items() if name != DENOISER and name not in STATISTICS}
    return {"flow": flow, DENOISER: {DENOISER: params[DENOISER]}} if DENOISER in params else {"flow": flow}


def init_optimizer(config: TrainConfig, params: Params) -> dict[str, optax.OptState]:
    """Zero moments for every group, with the structure of `params`."""
    return {name: _initial_moments(config, name, group) for name, group in groups(params).items()}


def gradient_point(config: TrainConfig, params: Params, opt_state: dict[str, optax.OptState]) -> Params:
    """The parameters at which gradients are computed: `params`, except for the optimizer "schedule-free".

    Schedule-free AdamW computes gradients at y = (1 - beta) z + beta x (arXiv 2405.15682, equation 1), where x is the
    average that `params` holds and z is part of `opt_state`.
    """
    if config.optimizer.name != "schedule-free":
        return params
    state: Any = opt_state["flow"]
    return params | _interpolated(config, groups(params)["flow"], state.z)


def apply_updates(
    config: TrainConfig,
    params: Params,
    opt_state: dict[str, optax.OptState],
    grads: Params,
    *,
    step: jax.Array | int,
    lr: jax.Array | float,
    denoiser_lr: jax.Array | float | None = None,
    allow: jax.Array | bool = True,
) -> tuple[Params, dict[str, optax.OptState], UpdateReport]:
    """One update of every group, by default of AdamW (decoupled weight decay on every parameter, eps 1e-8).

    A gradient is scaled by `min(1, grad_clip / (norm + 1e-6))` with the norm of its group. The update of a group is
    skipped, moments included, if its norm is not finite, if `allow` is false, or if its norm exceeds `grad_clip` after
    the first `skip_after` updates.

    Args:
      config: optimizer, betas, weight_decay, grad_clip, skip_after.
      params: nested dictionary of parameters; statistics are returned unchanged.
      opt_state: of `init_optimizer`.
      grads: at `gradient_point`, with the structure of `params`; entries of statistics are ignored.
      step: number of updates made before this one.
      lr: learning rate of the flow; denoiser_lr: of the denoiser, None for `config.denoiser_lr`.
      allow: false skips the update.

    Returns:
      The new parameters, the new optimizer state, and a report of the update.
    """
    gradient_groups = groups(grads)
    rates = {"flow": lr, DENOISER: config.denoiser_lr if denoiser_lr is None else denoiser_lr}
    updated, new_state, norms, applied = dict(params), {}, {}, {}
    for name, group in groups(params).items():
        gradients = gradient_groups[name]
        norm = optax.tree.norm(gradients)
        apply = jnp.isfinite(norm) & allow
        if config.grad_clip > 0:
            if config.skip_after is not None:
                apply &= (norm <= config.grad_clip) | (jnp.asarray(step) < config.skip_after)
            scale = jnp.minimum(1.0, config.grad_clip / (norm + 1e-6))
            gradients = jax.tree.map(lambda gradient, scale=scale: gradient * scale, gradients)
        stepped, moments = _stepped(config, name, group, opt_state[name], gradients, rates[name])
        updated |= keep_unless(apply, stepped, group)
        new_state[name] = keep_unless(apply, moments, opt_state[name])
        norms[name], applied[name] = norm, apply
    report = UpdateReport(norms["flow"], applied["flow"], norms.get(DENOISER), applied.get(DENOISER))
    return updated, new_state, report


def keep_unless(condition: jax.Array, new: Any, old: Any) -> Any:
    """The tree `new` if the scalar `condition` is true, else `old`; NaN in the other tree does not propagate."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def update_ema(ema: Params, params: Params, *, decay: float, step: jax.Array | int) -> Params:
    """The exponential moving average `decay * ema + (1 - decay) * params`.

    The decay rises as `(1 + n) / (10 + n)` with the number n of updates until it reaches `decay`, so that the initial
    parameters soon lose their weight. Statistics are averages already and are copied.

    Args:
      ema, params: nested dictionaries of the same structure.
      decay: largest decay, below 1.
      step: number of updates made before this one.
    """
    count = jnp.asarray(step, jnp.float32) + 1.0
    decay_now = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    mean = jax.tree.map(lambda old, new: new + decay_now * (old - new), ema, params)
    return mean | {name: params[name] for name in STATISTICS if name in params}


def _initial_moments(config: TrainConfig, name: str, group: Params) -> optax.OptState:
    if _is_schedule_free(config, name):
        return schedule_free(config, 0.0).init(group)
    return _descent(config, name).init(group)


def _stepped(
    config: TrainConfig, name: str, group: Params, state: optax.OptState, gradients: Params, rate: jax.Array | float
) -> tuple[Params, optax.OptState]:
    """The parameters and the optimizer state of a group after one update with that learning rate."""
    if _is_schedule_free(config, name):
        point = _interpolated(config, group, cast(Any, state).z)
        updates, state = schedule_free(config, rate).update(gradients, state, point)
        moved = jax.tree.map(jnp.add, point, updates)
        return contrib.schedule_free_eval_params(state, moved), state
    direction, state = _descent(config, name).update(gradients, state, group)
    return jax.tree.map(jnp.subtract, group, scaled(config.optimizer, direction, rate)), state


def _descent(config: TrainConfig, name: str) -> Any:
    if name == DENOISER:
        return descent(config, config.denoiser_betas, OptimizerConfig(moment_dtype=config.optimizer.moment_dtype))
    return descent(config, config.betas, config.optimizer)


def _is_schedule_free(config: TrainConfig, name: str) -> bool:
    return name != DENOISER and config.optimizer.name == "schedule-free"


def _interpolated(config: TrainConfig, average: Params, z: Params) -> Params:
    beta = config.optimizer.schedule_free.beta
    return jax.tree.map(lambda average, z: beta * average + (1.0 - beta) * z, average, z)
