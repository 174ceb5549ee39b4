"""What makes a flow a flow: exact inverses, exact Jacobians, causality, independence of samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, forward, log_prob, normal, random_flow

from starflow_jax.core.config import FlowConfig
from starflow_jax.flows import Guidance, objective, standard_normal_log_prob
from starflow_jax.flows.order import Grid, patchify, reorder, unpatchify
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn import transformer
from starflow_jax.solvers import inverse

# One block inside frames and one over the whole video, without the denoiser, which these tests do not run.
SHORT = dataclasses.replace(VIDEO, num_blocks=2, denoiser=None)
# Switch combinations that no recording covers, and the shapes of x they are tried on.
UNRECORDED = {
    "patch 2 with text": (dataclasses.replace(IMAGE, patch_size=2), (2, 4, 6, 2)),
    "patch 2 video": (dataclasses.replace(SHORT, patch_size=2), (2, 3, 4, 4, 2)),
    "R2L video": (dataclasses.replace(VIDEO, order="R2L", denoiser=None), (2, 3, 2, 2, 2)),
    "R2L global video": (dataclasses.replace(SHORT, order="R2L", shallow_local=False), (2, 3, 2, 2, 2)),
    "not temporally causal": (dataclasses.replace(SHORT, temporal_causal=False, shallow_local=False), (2, 3, 2, 2, 2)),
    "video without text": (
        dataclasses.replace(SHORT, text_dim=0, text_length=0, cond_top_only=False),
        (2, 3, 2, 2, 2),
    ),
    "no start token, softplus": (dataclasses.replace(IMAGE, sos=False), (2, 3, 3, 2)),
    "text in local blocks": (dataclasses.replace(SHORT, cond_top_only=False), (2, 3, 2, 2, 2)),
    "identity block, local": (dataclasses.replace(VIDEO, layers_per_block=(1, 0, 1)), (2, 3, 2, 2, 2)),
    "one token": (dataclasses.replace(IMAGE, sos=False), (2, 1, 1, 2)),
    "classes": (CLASSES, (2, 4, 4, 1)),
    "volume preserving": (dataclasses.replace(CLASSES, scale="unit"), (2, 4, 4, 1)),
}


def condition(config: FlowConfig, batch: int):
    if config.text_dim:
        return normal((batch, 3, config.text_dim), 3)
    return jnp.arange(batch) % config.num_classes if config.num_classes else None


@pytest.mark.parametrize("name", UNRECORDED)
def test_inverse_of_forward_is_the_data(name):
    config, shape = UNRECORDED[name]
    flow, x, cond = random_flow(config), normal(shape), condition(config, shape[0])

    @jax.jit
    def there_and_back(flow, x, cond):
        z = flow.forward(x, cond).z
        return z, inverse(flow, z, cond).x

    z, back = there_and_back(flow, x, cond)
    if name != "one token":  # whose only token has nothing before it
        assert float(jnp.max(jnp.abs(z - x))) > 0.1  # the flow is not the identity
    assert float(jnp.linalg.norm(back - x) / jnp.linalg.norm(x)) < 2e-5


@pytest.mark.parametrize("config, shape", [(IMAGE, (1, 3, 2, 2)), (CLASSES, (1, 4, 4, 1)), (SHORT, (1, 2, 2, 2, 2))])
def test_logdet_is_that_of_the_jacobian(config, shape):
    flow, x, cond = random_flow(config), normal(shape), condition(config, 1)

    @jax.jit
    def both(x):
        jacobian = jax.jacobian(lambda v: flow.forward(v.reshape(shape), cond).z.ravel())(x.ravel())
        return flow.forward(x, cond).logdet[0], jnp.linalg.slogdet(jacobian)[1]

    ours, exact = both(x)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5)


def test_log_prob_is_the_change_of_variables():
    flow, x, cond = random_flow(IMAGE), normal((2, 3, 3, 2)), condition(IMAGE, 2)
    out, found = forward(flow, x, cond), log_prob(flow, x, cond)
    dims, z = x[0].size, np.asarray(out.z)
    expected = -0.5 * np.sum(z**2, (1, 2, 3)) - 0.5 * dims * np.log(2 * np.pi) + out.logdet
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # The objective is the same quantity per dimension, without the constant.
    per_dim = -(np.asarray(found) + 0.5 * dims * np.log(2 * np.pi)) / dims
    np.testing.assert_allclose(jax.jit(objective)(out).loss, np.mean(per_dim), rtol=1e-5)


def test_a_new_flow_is_the_identity():
    from starflow_jax.flows import Flow

    x = normal((2, 4, 4, 1))
    out = forward(Flow(CLASSES, jax.random.key(0)), x, np.array([0, -1]))
    np.testing.assert_allclose(out.z, x, atol=1e-6)
    np.testing.assert_allclose(standard_normal_log_prob(out.z) + out.logdet, standard_normal_log_prob(x), rtol=1e-6)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_block_is_causal_in_its_own_order(backwards):
    flow = random_flow(dataclasses.replace(IMAGE, order="R2L"))
    index, token = int(backwards), 4
    x, cond = normal((1, 3, 3, 2)), condition(IMAGE, 1)
    ordered = flow.to_block(index, x, Grid.from_shape(IMAGE, x.shape))
    grid = Grid.from_shape(IMAGE, x.shape)

    @jax.jit
    def affine(tokens):
        return flow.blocks[index].affine(tokens, cond if index else None, grid)[0]

    before, after = affine(ordered), affine(ordered.at[:, token].add(1.0))
    moved = np.abs(np.asarray(after.mean - before.mean)).max(axis=(0, 2)) > 0
    assert not moved[: token + 1].any()
    assert moved[token + 1 :].all()


def test_frames_are_causal():
    flow, x, cond = random_flow(VIDEO), normal((1, 4, 2, 2, 2)), condition(VIDEO, 1)
    forward = jax.jit(lambda x: flow.forward(x, cond).z)
    moved = np.abs(np.asarray(forward(x.at[:, 2].add(1.0)) - forward(x))).max(axis=(0, 2, 3, 4)) > 0
    assert moved.tolist() == [False, False, True, True]


def test_a_batch_equals_its_members():
    flow, x, cond = random_flow(VIDEO), normal((3, 2, 2, 2, 2)), condition(VIDEO, 3)
    forward = jax.jit(lambda x, cond: flow.forward(x, cond))
    together = forward(x, cond)
    for i in range(3):
        alone = forward(x[i : i + 1], cond[i : i + 1])
        np.testing.assert_allclose(alone.z[0], together.z[i], atol=1e-5)
        np.testing.assert_allclose(alone.logdet[0], together.logdet[i], atol=1e-4)


def test_guided_forward_with_weight_zero_is_plain():
    flow, x, cond = random_flow(IMAGE), normal((2, 3, 3, 2)), condition(IMAGE, 2)
    null = jnp.zeros((1, 3, IMAGE.text_dim))
    guided = forward(flow, x, cond, Guidance(0.0, null))
    np.testing.assert_allclose(guided.z, forward(flow, x, cond).z, atol=1e-6)


def test_dropped_and_missing_labels_read_the_mean_embedding():
    flow, x = random_flow(CLASSES), normal((2, 4, 4, 1))
    plain = forward(flow, x).z
    np.testing.assert_allclose(forward(flow, x, np.array([-1, -1])).z, plain, atol=1e-6)
    assert np.abs(forward(flow, x, np.array([0, 1])).z - plain).max() > 1e-3


def gradient(config):
    x, cond, flow = normal((2, 3, 3, 2)), condition(IMAGE, 2), random_flow(config)
    return jax.jit(jax.grad(lambda x: objective(flow.forward(x, cond)).loss))(x)


@pytest.fixture(scope="module")
def plain_gradient():
    return gradient(IMAGE)


@pytest.mark.parametrize(
    "remat",
    ["attention", "block", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pointwise", "mlp", "dense"))],
)
def test_rematerialisation_changes_no_gradient(remat, plain_gradient):
    found = gradient(dataclasses.replace(IMAGE, remat=remat))
    np.testing.assert_allclose(found, plain_gradient, rtol=1e-4, atol=1e-6)


def test_on_cpus_the_backward_pass_stores_products_alone(monkeypatch):
    """The same gradient as with everything stored, as on accelerators, in less than two thirds of the memory."""
    config = dataclasses.replace(IMAGE, image_size=8, layers_per_block=4)
    flow, x, cond = random_flow(config), normal((4, 8, 8, 2)), condition(config, 4)

    def compiled():
        return jax.jit(jax.grad(lambda x: objective(flow.forward(x, cond)).loss)).lower(x).compile()

    products = compiled()
    monkeypatch.setattr(transformer, "layout_target", lambda layout: Target("tpu"))
    everything = compiled()
    np.testing.assert_allclose(products(x), everything(x), rtol=1e-4, atol=1e-6)
    small, large = (one.memory_analysis().temp_size_in_bytes for one in (products, everything))
    assert small < 0.67 * large, (small, large)


def test_the_backward_pass_of_a_long_sequence_stores_no_attention_weights():
    config = dataclasses.replace(IMAGE, image_size=32)
    flow, x, cond = random_flow(config), normal((1, 32, 32, 2)), condition(config, 1)
    stored = jax.eval_shape(lambda x: jax.vjp(lambda x: objective(flow.forward(x, cond)).loss, x)[1], x)
    assert 0 < max(leaf.size for leaf in jax.tree.leaves(stored)) < 1024 * 1024


@pytest.mark.slow
def test_the_memory_of_a_training_step_grows_in_proportion_to_the_sequence():
    """Four times the tokens, 1,024 and 4,096: chunks that were computed at once would need sixteen times the memory."""

    def temporary(side):
        config = dataclasses.replace(IMAGE, image_size=side)
        flow, x, cond = random_flow(config), normal((1, side, side, 2)), condition(config, 1)
        step = jax.jit(jax.grad(lambda x: objective(flow.forward(x, cond)).loss))
        return step.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 6 * temporary(32)


def test_bfloat16_networks_keep_float32_likelihoods():
    x, cond = normal((2, 3, 3, 2)), condition(IMAGE, 2)
    out = forward(random_flow(dataclasses.replace(IMAGE, dtype="bfloat16")), x, cond)
    exact = forward(random_flow(IMAGE), x, cond)
    assert out.z.dtype == out.logdet.dtype == jnp.float32
    difference = np.linalg.norm(out.z - exact.z) / np.linalg.norm(exact.z)
    assert 0 < difference < 0.05


def test_dropout_needs_a_key_and_is_off_without():
    config = dataclasses.replace(CLASSES, dropout=0.5)
    flow, x = random_flow(config), normal((2, 4, 4, 1))
    np.testing.assert_array_equal(forward(flow, x).z, forward(random_flow(CLASSES), x).z)
    dropped = jax.jit(lambda key: flow.forward(x, dropout_key=key).z)
    first, second = (dropped(jax.random.key(i)) for i in (0, 1))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("family", ["starflow", "tarflow"])
def test_patches_come_back(family):
    x = normal((2, 3, 4, 6, 5))
    tokens = patchify(x, 2, family)
    assert tokens.shape == (2, 3, 2, 3, 20)
    np.testing.assert_array_equal(unpatchify(tokens, 2, family), x)
    first = np.asarray(tokens[0, 0, 0, 0])
    pixels = np.asarray(x[0, 0, :2, :2])  # (p1, p2, C)
    np.testing.assert_array_equal(first, (pixels if family == "starflow" else pixels.transpose(2, 0, 1)).ravel())


def test_orders_are_their_own_inverse():
    tokens = jnp.arange(12.0).reshape(1, 12, 1)
    assert reorder(tokens, "flip_in_frame", 4)[0, :5, 0].tolist() == [3, 2, 1, 0, 7]
    for order in ("identity", "flip", "flip_in_frame"):
        np.testing.assert_array_equal(reorder(reorder(tokens, order, 4), order, 4), tokens)


@pytest.mark.parametrize(
    "config, shape, cond, sentence",
    [
        (IMAGE, (2, 4, 4, 3), None, r"x must be \[B, H, W, 2\]"),
        (IMAGE, (2, 4, 4, 2), None, r"cond must be text states \[2, L, 6\], got None"),
        (IMAGE, (2, 4, 4, 2), jnp.zeros((1, 3, 6)), r"got shape \(1, 3, 6\)"),
        (CLASSES, (2, 5, 4, 1), None, "patch_size 2 must divide"),
        (CLASSES, (2, 8, 8, 1), None, "without rotary positions"),
        (CLASSES, (2, 4, 4, 1), jnp.zeros((2,)), "cond must be integer labels"),
    ],
)
def test_wrong_inputs_are_one_sentence(config, shape, cond, sentence, shapes_unchecked):
    with pytest.raises(ValueError, match=sentence):
        random_flow(config).forward(jnp.zeros(shape), cond)
