"""AdamW in two groups, against the textbook formulas in float64, and its clipping and skipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import TrainConfig
from starflow_jax.training.step.optimizer import apply_updates, init_optimizer, update_ema


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "blocks": {"w": jnp.asarray(scale * rng.normal(size=(3, 4)), jnp.float32)},
        "denoiser": {"w": jnp.asarray(scale * rng.normal(size=(5,)), jnp.float32)},
        "prior_variance": jnp.asarray(rng.normal(size=(2,)), jnp.float32),
    }


def config(**options):
    return TrainConfig(steps=10, batch_size=1, lr=1e-3, **options)


def adamw(w, gradients, lr, betas, decay=1e-4, clip=0.0, eps=1e-8):
    """AdamW of Loshchilov and Hutter with the clipping rule of the originals, float64."""
    w, m, v = np.asarray(w, np.float64), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        g = np.asarray(g, np.float64)
        if clip:
            g = g * min(1.0, clip / (np.sqrt((g**2).sum()) + 1e-6))
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        w = w * (1 - lr * decay)
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_each_group_follows_its_own_adamw(clip):
    options = config(grad_clip=clip, weight_decay=0.1)
    params, start = tree(0), tree(0)
    state = init_optimizer(options, params)
    gradients = [tree(1), tree(2, 0.01), tree(3)]
    update = jax.jit(lambda p, s, g: apply_updates(options, p, s, g, step=0, lr=1e-2, denoiser_lr=1e-3))
    for gradient in gradients:
        params, state, report = update(params, state, gradient)
        assert report.applied and report.denoiser_applied
    for name, lr, betas in (("blocks", 1e-2, (0.9, 0.95)), ("denoiser", 1e-3, (0.9, 0.999))):
        expected = adamw(start[name]["w"], [g[name]["w"] for g in gradients], lr, betas, 0.1, clip)
        np.testing.assert_allclose(params[name]["w"], expected, rtol=1e-5, atol=1e-6)
        norm = np.linalg.norm(gradients[-1][name]["w"])
        seen = report.grad_norm if name == "blocks" else report.denoiser_grad_norm
        np.testing.assert_allclose(seen, norm, rtol=1e-6)


def test_statistics_are_left_alone_and_a_flow_without_denoiser_has_one_group():
    params = {name: value for name, value in tree(0).items() if name != "denoiser"}
    state = init_optimizer(config(), params)
    assert set(state) == {"flow"}
    moved, _, report = apply_updates(config(), params, state, params, step=0, lr=1.0)
    np.testing.assert_array_equal(moved["prior_variance"], params["prior_variance"])
    assert not np.allclose(moved["blocks"]["w"], params["blocks"]["w"])
    assert report.denoiser_grad_norm is None


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_norm_over_the_clip_is_skipped_only_after_the_first_updates_and_only_in_its_group():
    options = config(grad_clip=1.0, skip_after=100)
    params = tree(0)
    state = init_optimizer(options, params)
    gradient = {**tree(1, 1e-3), "blocks": {"w": jnp.full((3, 4), 9.0)}}
    _, _, early = apply_updates(options, params, state, gradient, step=99, lr=1e-2)
    assert early.applied  # update number 100
    moved, moments, late = apply_updates(options, params, state, gradient, step=100, lr=1e-2)
    assert not late.applied and late.denoiser_applied
    assert same(moved["blocks"], params["blocks"]) and not same(moved["denoiser"], params["denoiser"])
    assert same(moments["flow"], state["flow"]) and not same(moments["denoiser"], state["denoiser"])
    unlimited = config(grad_clip=1.0, skip_after=None)
    _, _, never = apply_updates(unlimited, params, state, gradient, step=100, lr=0.1)
    assert never.applied


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    params = tree(0)
    state = init_optimizer(config(grad_clip=1.0), params)
    gradient = jax.tree.map(lambda leaf: leaf.at[0].set(bad), tree(1))
    moved, moments, report = apply_updates(config(grad_clip=1.0), params, state, gradient, step=0, lr=1e-2)
    assert not report.applied and same(moved, params) and same(moments, state)


def test_a_refused_update_changes_nothing():
    params = tree(0)
    state = init_optimizer(config(), params)
    no = jnp.asarray(False)
    moved, moments, _ = apply_updates(config(), params, state, tree(1), step=0, lr=1e-2, allow=no)
    assert same(moved, params) and same(moments, state)


def test_the_running_mean_forgets_the_start_early_and_then_keeps_its_decay():
    start, target = tree(0), tree(1)
    first = update_ema(start, target, decay=0.9, step=0)
    late = update_ema(start, target, decay=0.9, step=10_000)
    for mean, decay in ((first, 2 / 11), (late, 0.9)):
        expected = decay * start["blocks"]["w"] + (1 - decay) * target["blocks"]["w"]
        np.testing.assert_allclose(mean["blocks"]["w"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(mean["prior_variance"], target["prior_variance"])
