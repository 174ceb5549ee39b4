"""Adaptive layer norms, SwiGLU, layer norms of queries and keys, sinusoidal positions: the variant for molecules."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import run_on_eight_devices
from random_flows import CLASSES as WITH_CLASSES
from random_flows import normal, random_flow
from small_molecules import CLASSES, LENGTHS, SHAPE, compiled_forward, dense_log_determinants

import starflow_jax as sf
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig, load_config
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.costs.flops import Work, forward_parts, traced
from starflow_jax.experiments import chain_potential
from starflow_jax.flows import Flow, LinearGuidance
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.noise_gradient import noise_gradient
from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.kernels.attention import Causal
from starflow_jax.porting.tensor_names import entries
from starflow_jax.solvers import Jacobi, Sequential
from starflow_jax.training.checkpoints.port_requests import check_portable

# Five atoms in the plane, of three kinds.
ATOMS = FlowConfig(
    family="tarflow", channels=2, image_size=(5, 1), width=16, num_blocks=2, layers_per_block=2, head_dim=8,
    orders=((2, 0, 4, 3, 1), ()), token_classes=3, look_ahead=True, default_classes=(0, 1, 2, 1, -1),
    norm="adaptive", mlp="swiglu", qk_norm="layer", positions="sinusoidal",
)  # fmt: skip


@pytest.fixture(scope="module")
def flow():
    return random_flow(ATOMS)


@pytest.fixture(scope="module")
def x():
    return normal(SHAPE)


@pytest.fixture(scope="module")
def forward(flow):
    return compiled_forward(flow)


def test_log_determinant_is_that_of_the_jacobian(flow, forward, x):
    expected = dense_log_determinants(flow, x)
    np.testing.assert_allclose(forward(x, CLASSES, None).logdet, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 0.3


def test_each_solver_inverts_padded_molecules(flow, forward, x):
    out = forward(x, CLASSES, LENGTHS)
    expected = np.where((np.arange(5)[None] < LENGTHS[:, None])[:, :, None, None], x, 0)
    invert = jax.jit(
        lambda z, solver: sf.inverse(flow, z, CLASSES, lengths=LENGTHS, solver=solver, with_logdet=True),
        static_argnums=1,
    )
    for solver in (Sequential(), Jacobi(block=3, tolerance=1e-12)):
        back = invert(out.z, solver)
        np.testing.assert_allclose(back.x, expected, atol=1e-4)
        np.testing.assert_allclose(back.logdet, out.logdet, rtol=1e-4)


def test_only_earlier_tokens_and_the_class_ahead_reach_a_scale(flow, x):
    """Scales and shifts of the norms are those of the slot's own classes."""
    block, order = flow.block(0), np.asarray(ATOMS.orders[0])
    scale = jax.jit(lambda x, c: block.affine(x[:, order, 0], c[:, order], Grid(None, 5, 1))[0].scale)
    base = scale(x, CLASSES)
    atom = ATOMS.orders[0][3]  # the fourth token of the block
    moved_x, moved_classes = x.at[:, atom].add(1.0), CLASSES.copy()
    moved_classes[:, atom] = (moved_classes[:, atom] + 1) % 3
    by_x, by_class = (
        np.abs(np.asarray(moved - base)).max(axis=(0, 2)) > 1e-6
        for moved in (scale(moved_x, CLASSES), scale(x, moved_classes))
    )
    assert by_x.tolist() == [False, False, False, False, True]
    assert by_class.tolist() == [False, False, False, True, True]


@pytest.mark.slow
def test_a_new_layer_is_the_identity_map():
    """Every branch has a gate of zero, so that the hidden state of a new block is its input."""
    block = Flow(ATOMS, jax.random.key(0)).block(0)
    h, condition = normal((3, 5, 16)), normal((3, 5, 16), 8)
    out, _ = block.transformer(h, rotation=None, visibility=Causal(), condition=condition)
    np.testing.assert_array_equal(out, h)


@pytest.mark.slow
def test_a_class_and_a_noise_level_modulate_under_guidance():
    config = dataclasses.replace(WITH_CLASSES, norm="adaptive", noise_levels=(0.1, 1.0))
    flow, images, labels = random_flow(config), normal((3, 4, 4, 1)), np.array([0, 2, -1])
    guidance = LinearGuidance(0.7)
    options = {"guidance": guidance, "noise_level": 0.4}
    z = jax.jit(lambda x: flow.forward(x, labels, **options).z)(images)
    back = jax.jit(lambda z: sf.inverse(flow, z, labels, **options).x)(z)
    np.testing.assert_allclose(back, images, atol=1e-4)
    log_p = jax.jit(lambda labels, level: flow.log_prob(images, labels, noise_level=level))
    base = log_p(labels, 0.4)
    assert np.abs(log_p(np.array([1, 0, 1]), 0.4) - base).min() > 1e-3
    assert np.abs(log_p(labels, 0.8) - base).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["pointwise", "attention", "mlp", "dense", "block"])
def test_recomputation_changes_no_gradient(x, remat):
    def gradient(config):
        definition, params = split(random_flow(config))
        loss = jax.jit(jax.grad(lambda p: objective(merge(definition, p).forward(x, CLASSES)).loss, allow_int=True))
        return loss(params)

    expected, found = gradient(ATOMS), gradient(dataclasses.replace(ATOMS, remat=remat))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_counted_products_are_those_of_the_program(x):
    definition, params = abstract(ATOMS)
    work = Work(batch=3, frames=None, rows=5, columns=1)
    program = jax.make_jaxpr(lambda p: merge(definition, p).forward(x, CLASSES).z)(params)
    assert traced(program) == sum(part.total for part in forward_parts(ATOMS, work, masked=True))


def test_conditions_of_adaptive_norms():
    for changes, message in (
        ({"token_classes": 0, "look_ahead": False, "default_classes": None}, "norm 'adaptive' needs a condition, "),
        (
            {
                "family": "starflow",
                "token_classes": 0,
                "look_ahead": False,
                "default_classes": None,
                "noise_levels": (0.1, 1.0),
            },
            "norm 'adaptive' is only supported by family 'tarflow'",
        ),
        (
            {"norm": "layer", "token_classes": 0, "look_ahead": False, "default_classes": (-1,) * 5},
            "default_classes needs token_classes above 0, got 0",
        ),
        ({"default_classes": 3}, "default_classes must be a tuple of integers or None, got 3"),
        ({"default_classes": [0, 1, 2, 1, 0]}, r"default_classes must be a tuple of integers or None, got \[0, 1"),
        ({"default_classes": (0, 1)}, "default_classes must have 5 entries, one for each token, got 2"),
        ({"default_classes": (0, 1, 2, 3, 0)}, "default_classes must be below token_classes=3, got 3"),
        ({"default_classes": (0, 1, 2, -2, 0)}, "default_classes must be an integer >= -1, got -2"),
        ({"qk_norm": "rms"}, "qk_norm must be one of False, True, 'layer', got 'rms'"),
        ({"width": 15, "head_dim": 5}, "positions 'sinusoidal' needs blocks of an even width, got 15"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ATOMS, **changes)
    with pytest.raises(ValueError, match="positions 'sinusoidal' needs rope=False"):
        FlowConfig(channels=1, image_size=2, width=8, num_blocks=1, layers_per_block=1, head_dim=8, rope=True,
                   positions="sinusoidal")  # fmt: skip
    for name, value in (("norm", "adaptive"), ("mlp", "swiglu"), ("qk_norm", "layer"), ("positions", "sinusoidal")):
        plain = dataclasses.replace(ATOMS, orders=None, norm="layer", mlp="gelu", qk_norm=False, positions="learned")
        with pytest.raises(ValueError, match=rf"flow\.{name} must not be '{value}' for files of the PyTorch originals"):
            check_portable(dataclasses.replace(plain, **{name: value}))
    model = TransformerConfig(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, rope="1d", mlp="gated")
    deep = FlowConfig(channels=1, image_size=2, width=16, num_blocks=1, layers_per_block=1, head_dim=8, rope=True,
                      rope_axes=3, text_dim=16, text_length=2, language_model=model)  # fmt: skip
    check_portable(deep)
    for name, value in (("mlp", "swiglu"), ("qk_norm", "layer")):
        changed = dataclasses.replace(deep, language_model=dataclasses.replace(model, **{name: value}))
        with pytest.raises(ValueError, match=rf"flow\.language_model\.{name} must not be '{value}' for files"):
            check_portable(changed)
    with pytest.raises(ValueError, match=r"flow\.qk_norm must not be 'layer' for files"):
        entries(abstract(dataclasses.replace(ATOMS, norm="layer", token_classes=0, look_ahead=False,
                                             default_classes=None))[1])  # fmt: skip
    data = DataConfig(source="vectors", path="x.npz", noise="none")
    ExperimentConfig("atoms", ATOMS, data, TrainConfig(steps=1, batch_size=1, lr=1e-3))


@pytest.mark.slow
def test_a_mesh_gives_what_one_device_gives():
    found = json.loads(run_on_eight_devices("adaptive_norm_on_eight_devices.py"))
    assert len(found) == 6
    for errors in found.values():
        assert errors["kernel"][1] == "fsdp"
        assert max(errors["log p"], errors["gradients"], errors["inverse"]) < 1e-4


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory):
    """A short training of the shipped experiment."""
    folder = tmp_path_factory.mktemp("chain")
    np.savez(folder / "chain.npz", x=chain_potential.conformations(100))
    sf.train(load_config("experiments/chain_molecule.py:tiny", [f"data.path={folder / 'chain.npz'}"]), folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("quantise", [None, "int8"])
def test_a_run_of_the_chain_molecule(chain_run, quantise):
    """A checkpoint is read, also with kernels in 8 bits; samples without a condition have the density of the model."""
    if quantise is not None:
        pytest.importorskip("qwix")
    atoms = sf.distribution(sf.from_pretrained(chain_run, quantise=quantise))
    points, log_q = atoms.sample_and_log_prob(jax.random.key(0), (4,))
    assert points.shape == (4, 12, 3)
    np.testing.assert_allclose(log_q, atoms.log_prob(points), atol=1e-3)


@pytest.mark.slow
def test_the_density_of_the_chain_molecule():
    """Stein's identity: the mean of x times the gradient of log p is -1 for each of the 36 coordinates."""
    x = chain_potential.conformations(40_000, seed=1)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(chain_potential.log_density(x))))(x)
    products = np.sum(np.asarray(x * gradient, np.float64), axis=(1, 2))
    assert abs(products.mean() + x[0].size) < 4 * products.std() / np.sqrt(len(x))


@pytest.mark.slow
def test_default_classes_are_those_of_a_call_without_a_condition(flow, forward, x):
    default = np.tile(np.asarray(ATOMS.default_classes, np.int32), (3, 1))
    np.testing.assert_array_equal(jax.jit(flow.forward)(x).z, forward(x, default, None).z)
    back = jax.jit(lambda z: sf.inverse(flow, z))(forward(x, default, None).z)
    np.testing.assert_allclose(back.x, x, atol=1e-4)


def test_default_classes_are_those_of_a_noise_gradient_without_a_condition(flow, x):
    gradient = jax.jit(lambda classes: noise_gradient(flow, x, x + 1, classes))
    default = jnp.tile(jnp.asarray(ATOMS.default_classes, jnp.int32), (3, 1))
    found = gradient(None)
    np.testing.assert_allclose(found, gradient(default), atol=1e-6)
    assert np.abs(found - gradient(jnp.full_like(default, -1))).max() > 1e-2


@pytest.mark.slow
def test_passes_in_bfloat16_read_one_sum_of_two_conditions():
    """The cached prediction rounds each term of the condition as the pass over all tokens does."""
    config = dataclasses.replace(WITH_CLASSES, norm="adaptive", noise_levels=(0.1, 1.0), dtype="bfloat16")
    block, grid, labels, tokens = (
        random_flow(config).block(0),
        Grid(None, 2, 2),
        np.array([0, 2, -1]),
        normal((3, 4, 4)),
    )

    def both(tokens):
        predict, cache = block.predictor(labels, grid, 3, noise_level=0.4)
        cached = predict(tokens[:, :3], 1, cache)[0].affine
        return block.affine(tokens, labels, grid, noise_level=0.4)[0].mean[:, 1:], cached.mean

    def products(flow_config):
        block = random_flow(flow_config).block(0)
        predict, cache = block.predictor(labels, grid, 3, noise_level=0.4)
        return traced(jax.make_jaxpr(lambda tokens: predict(tokens, 1, cache)[0].out)(tokens[:, :1]))

    # The modulation of all tokens is not among those of a step.
    assert products(config) == products(dataclasses.replace(config, norm="layer"))
    expected, found = jax.jit(both)(tokens)
    np.testing.assert_allclose(found, expected, atol=2e-5)
