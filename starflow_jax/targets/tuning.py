"""A flow fitted to points, such as samples of a target, and optionally to the target itself.

Points are fitted by maximum likelihood, which minimises the forward divergence KL(p || q). The reverse divergence
KL(q || p) is minimised by samples of the flow. Its gradient is E_q[(log q - log p~ - b) grad log q] with the mean of
the other samples as the baseline b: it is exact, it needs no derivative of the target nor of the solver that draws, and
its variance vanishes where q is the target (VarGrad; Richter, Boustati, Nuesken, Ruiz and Akyildiz, 2020).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.targets.proposals import Target, as_argument, check_condition
from starflow_jax.targets.symmetries import Symmetrised, with_params


def tune(
    distribution: Distribution | Symmetrised,
    x: Float[Array, "n ..."] | None,
    key: PRNGKeyArray,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    target: Target | None = None,
    reverse: float = 0.0,
    condition: Any = None,
) -> tuple[Distribution | Symmetrised, Float[Array, "steps"]]:
    """Fits the parameters of a flow by Adam with a cosine schedule; one compiled program.

    The loss is (1 - reverse) * -mean log q(x) + reverse * KL(q || p~), where the divergence is that from the
    unnormalised target, KL(q || p) - log Z.

    Args:
      distribution: where it starts, a flow or a `Symmetrised` one.
      x: points [n, *distribution.shape] of equal weight; None where `reverse` is 1.
      key: of the batches, drawn with replacement, and of the samples.
      steps: number of updates; batch_size: points, and samples of the flow, in each.
      lr: learning rate after a warm-up of a twentieth of the updates; it falls to 0 as a cosine.
      target: log p~, for the reverse divergence.
      reverse: weight of the reverse divergence, 0 to 1; at 0 nothing is sampled.
      condition: of the flow, one for all points.

    Returns:
      The fitted distribution, and the loss of every batch, [steps], in nats. A batch whose gradient is not finite
      changes nothing.

    Raises:
      ValueError: an argument is out of range, or does not fit the flow.
    """
    check_tuning(steps=steps, batch_size=batch_size, lr=lr, reverse=reverse)
    check_condition(distribution, condition)
    argument = None
    if reverse > 0:
        check(target is not None, f"target must be given for reverse={reverse}, got None")
        assert target is not None
        argument = as_argument(target, distribution.shape, batch_size)
    if reverse < 1:
        shape = None if x is None else tuple(jnp.shape(x))
        fits = shape is not None and len(shape) > 0 and shape[0] > 0 and shape[1:] == distribution.shape
        expected = ", ".join(map(str, distribution.shape))
        check(
            fits, f"x must be [n, {expected}] with at least one point, got {'None' if shape is None else list(shape)}"
        )
    else:
        x = None
    params, losses = _tune(steps, batch_size, reverse, distribution, argument, x, key, lr, condition)
    return with_params(distribution, params), losses


def check_tuning(*, steps: int, batch_size: int, lr: float, reverse: float) -> None:
    """Raises ValueError for an argument of `tune` that is out of range."""
    check_integer("steps", steps, minimum=1)
    # With the reverse divergence the baseline of a sample is the mean of the others.
    check_integer("batch_size", batch_size, minimum=1 + (reverse > 0))
    check_real("lr", lr, minimum=0.0)
    check_real("reverse", reverse, minimum=0.0)
    check(reverse <= 1, f"reverse must be at most 1, got {reverse}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _tune(
    steps: int,
    batch_size: int,
    reverse: float,
    distribution: Distribution | Symmetrised,
    target: jax.tree_util.Partial | None,
    x: Float[Array, "n ..."] | None,
    key: PRNGKeyArray,
    lr: float,
    condition: Any,
) -> tuple[dict[str, Any], Float[Array, "steps"]]:
    """The parameters after all updates, and the losses; arguments as in `tune`."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 20), max(2, steps))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda count: lr * shape(count)))

    def loss(params: dict[str, Any], batch: jax.Array | None, drawn: jax.Array | None) -> jax.Array:
        fitted = with_params(distribution, params)
        total = jnp.float32(0)
        if batch is not None:
            total += (1 - reverse) * -jnp.mean(fitted.log_prob(batch, condition))
        if drawn is not None:
            assert target is not None
            total += reverse * reverse_divergence(fitted.log_prob(drawn, condition), target(drawn))
        return total

    def update(carry: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        batch_key, sample_key = jax.random.split(key)
        batch = drawn = None
        if x is not None:
            batch = x[jax.random.randint(batch_key, (batch_size,), 0, len(x))]
        if target is not None:
            now = with_params(distribution, params)
            drawn = now.sample_and_log_prob(sample_key, (batch_size,), condition)[0]
        value, gradient = jax.value_and_grad(loss)(params, batch, drawn)
        if "prior_variance" in gradient:  # a statistic, which is not trained
            gradient = gradient | {"prior_variance": jnp.zeros_like(gradient["prior_variance"])}
        changes, next_state = optimizer.update(gradient, state, params)
        finite = jnp.isfinite(optax.tree.norm(gradient))
        new = (optax.apply_updates(params, changes), next_state)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, carry), value

    start = (distribution.params, optimizer.init(distribution.params))
    (params, _), losses = jax.lax.scan(update, start, jax.random.split(key, steps))
    return params, losses


def reverse_divergence(log_q: Float[Array, "n"], log_p: Float[Array, "n"]) -> Float[Array, ""]:
    """KL(q || p~) by samples of q, with the gradient of the score function with respect to what `log_q` depends on.

    Args:
      log_q: log-densities of the samples, differentiable with respect to the parameters, the samples being constant.
      log_p: log p~ of the samples.
    """
    difference = jax.lax.stop_gradient(log_q - log_p)
    value = jnp.mean(difference)
    # (d_i - mean of the others) / n = (d_i - mean of all) / (n - 1)
    surrogate = jnp.sum((difference - value) * log_q) / (len(log_q) - 1)
    return value + surrogate - jax.lax.stop_gradient(surrogate)
