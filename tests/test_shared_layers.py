"""Flows whose blocks share their first layers: the same function as a flow that holds these layers once per block."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.flows.parameters import abstract, count, merge, split
from starflow_jax.porting.tensor_names import entries
from starflow_jax.solvers import Jacobi, Sequential, inverse

CONFIG = dataclasses.replace(CLASSES, layers_per_block=(2, 3), shared_layers=1)
LABELS = jnp.array([1, 2])


def with_copies(flow):
    """The flow in which every block holds the layers that blocks of the given flow share."""
    config = dataclasses.replace(flow.config, shared_layers=0)
    params = split(flow)[1]
    layers = params.pop("shared")["layers"]
    for block in params["blocks"].values():
        own = block["transformer"]["layers"]
        block["transformer"]["layers"] = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), layers, own)
    return merge(abstract(config)[0], params)


@pytest.fixture(scope="module")
def flow():
    return random_flow(CONFIG)


@pytest.fixture(scope="module")
def x():
    return normal((2, 4, 4, 1))


@jax.jit
def likelihood_and_gradients(flow, x):
    def total(params):
        return jnp.sum(merge(definition, params).log_prob(x, LABELS))

    definition, params = split(flow)
    return total(params), jax.grad(total)(params)


def test_likelihood_and_gradients_are_those_of_a_flow_with_copies(flow, x):
    value, gradients = likelihood_and_gradients(flow, x)
    reference, by_block = likelihood_and_gradients(with_copies(flow), x)
    np.testing.assert_allclose(value, reference, rtol=1e-6)
    first = [block["transformer"]["layers"]["mlp"]["up"]["kernel"][:1] for block in by_block["blocks"].values()]
    np.testing.assert_allclose(gradients["shared"]["layers"]["mlp"]["up"]["kernel"], sum(first), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [Sequential(), pytest.param(Jacobi(block=2, tolerance=1e-12), marks=pytest.mark.slow)]
)
def test_the_flow_is_inverted(flow, x, solver):
    @jax.jit
    def there_and_back(flow):
        return inverse(flow, flow.forward(x, LABELS).z, LABELS, solver=solver).x

    np.testing.assert_allclose(there_and_back(flow), x, atol=1e-4)


@pytest.mark.slow
def test_videos_are_inverted_with_text_in_front(x):
    config = dataclasses.replace(VIDEO, deep_width=None, layers_per_block=2, shared_layers=1)
    flow, x, text = random_flow(config), normal((2, 3, 4, 4, 2)), normal((2, 3, 6), 3)
    found = jax.jit(lambda: inverse(flow, flow.forward(x, text).z, text).x)()
    np.testing.assert_allclose(found, x, atol=2e-3)


def test_the_layers_are_stored_once():
    params = abstract(CONFIG)[1]
    copies = abstract(dataclasses.replace(CONFIG, shared_layers=0))[1]
    assert count(copies) - count(params) == count(params["shared"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_layers": 2}, "shared_layers must be below the number of layers of every block, at most 1, got 2"),
        ({"shared_layers": -1}, "shared_layers must be an integer >= 0, got -1"),
        ({"shared_layers": 1, "deep_width": 32}, r"shared_layers needs blocks of one width, got \[16, 32\]"),
    ],
)
def test_bad_numbers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_identity_blocks_have_no_layers_to_share():
    assert dataclasses.replace(CONFIG, layers_per_block=(0, 3), shared_layers=2).blocks[0].layers == 0


def test_files_of_the_originals_have_no_place_for_them():
    with pytest.raises(ValueError, match=r"flow.shared_layers must be 0 for files of the PyTorch originals"):
        entries(abstract(CONFIG)[1])


def test_hashes_of_other_flows_stay():
    assert "shared_layers" not in IMAGE.identity() and CONFIG.identity()["shared_layers"] == 1
