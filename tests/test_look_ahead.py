"""Classes of single tokens, with look-ahead: an exact inverse, the right log-determinant, and what each slot reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import normal, random_flow
from small_molecules import CLASSES, LENGTHS, SHAPE, compiled_forward, dense_log_determinants

import starflow_jax as sf
from starflow_jax.core.config import ExperimentConfig, FlowConfig
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting.tensor_names import entries

# Five atoms in the plane, as vectors of two numbers, in orders of their own.
ATOMS = FlowConfig(
    family="tarflow", channels=2, image_size=(5, 1), width=16, num_blocks=3, layers_per_block=1, head_dim=8,
    orders=((2, 0, 4, 3, 1), (), (4, 3, 1, 0, 2)), token_classes=3, look_ahead=True,
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
    np.testing.assert_allclose(forward(x, CLASSES, None).logdet, expected, rtol=1e-4)
    assert np.abs(expected).min() > 0.05


@pytest.mark.parametrize("lengths", [pytest.param(None, marks=pytest.mark.slow), LENGTHS], ids=["full", "padded"])
def test_inverse_is_exact(flow, forward, x, lengths):
    out = forward(x, CLASSES, lengths)
    back = jax.jit(lambda z: sf.inverse(flow, z, CLASSES, lengths=lengths, with_logdet=True))(out.z)
    expected = np.asarray(x).copy()
    if lengths is not None:
        expected[np.arange(5)[None] >= lengths[:, None]] = 0
    np.testing.assert_allclose(back.x, expected, atol=1e-4)
    np.testing.assert_allclose(back.logdet, out.logdet, rtol=1e-4)


def test_class_of_padding_has_no_effect(forward, x):
    changed = np.where(np.arange(5)[None] >= LENGTHS[:, None], (CLASSES + 1) % 3, CLASSES)
    np.testing.assert_allclose(forward(x, CLASSES, LENGTHS).z, forward(x, changed, LENGTHS).z, atol=1e-6)


def moved(config, x):
    """Which tokens' scales, in the order of a block, depend on the class of its token 3."""
    block, order = random_flow(config).block(0), np.asarray(config.orders[0])
    tokens = x[:, order, 0]
    classes = CLASSES[:, order].copy()
    other = classes.copy()
    other[:, 3] = (other[:, 3] + 1) % 3
    grid = sf.flows.order.Grid(None, 5, 1)
    scale = jax.jit(lambda c: block.affine(tokens, c, grid)[0].scale)
    scales = [scale(c) for c in (classes, other)]
    return np.abs(np.asarray(scales[0] - scales[1])).max(axis=(0, 2)) > 1e-6


def test_look_ahead_reads_the_class_of_the_predicted_token(x):
    assert moved(ATOMS, x).tolist() == [False, False, False, True, True]
    behind = dataclasses.replace(ATOMS, look_ahead=False)
    assert moved(behind, x).tolist() == [False, False, False, False, True]


@pytest.mark.slow
def test_classes_belong_to_atoms_in_every_order(forward, x):
    """A flow whose orders name the same atoms by other raster indices is the same flow of renamed atoms."""
    names = np.array([3, 1, 4, 0, 2])  # the new raster index of each atom
    renamed = dataclasses.replace(
        ATOMS, orders=tuple(tuple(int(names[i]) for i in (o or range(4, -1, -1))) for o in ATOMS.orders)
    )
    other = random_flow(renamed)
    # Learned positions belong to raster indices.
    for block in other.blocks:
        block.pos_embed[...] = block.pos_embed[...][np.argsort(names)]
    moved_x, moved_classes = np.empty_like(x), np.empty_like(CLASSES)
    moved_x[:, names], moved_classes[:, names] = x, CLASSES
    actual = other.forward(jnp.asarray(moved_x), moved_classes)
    np.testing.assert_allclose(actual.logdet, forward(x, CLASSES, None).logdet, rtol=1e-4)


@pytest.mark.slow
def test_a_distribution_takes_classes_of_tokens(flow, x):
    atoms = sf.distribution(flow, shape=(5, 2))
    assert atoms.cond_shape == (5,)
    points, log_q = atoms.sample_and_log_prob(jax.random.key(0), (3,), CLASSES[0])
    np.testing.assert_allclose(log_q, atoms.log_prob(points, CLASSES[0]), rtol=1e-4)
    with pytest.raises(ValueError, match=r"condition must be classes of tokens, integers \[..., 5\], got int32"):
        atoms.log_prob(points, CLASSES[0, :4])


def test_configurations(flow, x):
    for changes, message in (
        ({"family": "starflow", "scale": "exp"}, "token_classes is only supported by family 'tarflow'"),
        ({"num_classes": 2}, "not both, got num_classes=2 and token_classes=3"),
        ({"token_classes": 0}, "look_ahead needs token_classes above 0, got 0"),
        ({"token_classes": -1}, "token_classes must be an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ATOMS, **changes)
    with pytest.raises(ValueError, match=r"cond must be integer classes of tokens \[3, 5\] or None, got float32"):
        flow.forward(x, CLASSES.astype(np.float32))
    data = sf.DataConfig(source="vectors", path="x.npz", noise="none")
    train = sf.TrainConfig(steps=1, batch_size=1, lr=1e-3)
    with pytest.raises(ValueError, match=r"flow\.token_classes needs flow\.default_classes in an experiment"):
        ExperimentConfig("atoms", ATOMS, data, train)
    with pytest.raises(ValueError, match=r"flow\.token_classes must be 0 for files of the PyTorch originals"):
        entries(abstract(ATOMS)[1])
    without = dataclasses.replace(ATOMS, token_classes=0, look_ahead=False)
    assert "token_classes" not in without.identity() and ATOMS.identity()["look_ahead"]
