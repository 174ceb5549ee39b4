"""A flow as a distribution of other libraries, judged by what these compute of it themselves."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, random_flow

import starflow_jax as sf
from starflow_jax.core.config import FlowConfig

PAIR = FlowConfig(
    family="tarflow", channels=1, image_size=(2, 1), width=8, num_blocks=2, layers_per_block=1, head_dim=8
)
KEY = jax.random.key(3)
LABELS = jnp.array([0, 2, 1])


@pytest.fixture(scope="module")
def flow():
    return sf.distribution(random_flow(CLASSES), shape=(16,))


@pytest.fixture(scope="module")
def pair():
    return sf.distribution(random_flow(PAIR), shape=(2,))


def library(name: str):
    """The library; skips where it is missing, or does not know this JAX, which raises other errors than missing."""
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"{name}: {error}")


def test_unknown_and_missing_libraries_are_named(pair, monkeypatch):
    with pytest.raises(ValueError, match="library must be one of 'flowjax', 'distrax', 'numpyro', 'tfp', got 'zuko'"):
        sf.adapted(pair, "zuko")
    monkeypatch.setitem(sys.modules, "starflow_jax.api.adapters.numpyro_adapter", None)
    with pytest.raises(ValueError, match=r"library 'numpyro' must be installed .* 'starflow-jax\[numpyro\]'"):
        sf.adapted(pair, "numpyro")


def test_leading_axes_of_a_condition_are_refused_for_flowjax(flow):
    for condition, seen in ((LABELS, 3), (jnp.ones((2, 3)) / 3, 2)):
        with pytest.raises(
            ValueError, match=rf"condition must have no leading axes .* got the leading axes \[{seen}\]"
        ):
            sf.adapted(flow, "flowjax", condition)


@pytest.mark.slow
def test_flowjax(flow):
    library("flowjax")
    import equinox as eqx
    from flowjax.bijections import Invert

    made = sf.adapted(flow, "flowjax")
    assert made.shape == (16,) and made.cond_shape == ()
    x, log_p = made.sample_and_log_prob(KEY, (2,), LABELS.astype(float))
    assert x.shape == (2, 3, 16) and log_p.shape == (2, 3)
    np.testing.assert_allclose(made.log_prob(x, LABELS), log_p, rtol=1e-5)
    np.testing.assert_allclose(flow.log_prob(x, LABELS), log_p, rtol=1e-5)
    # The checks of the library's own tests of bijections: inverse, log-determinants, and the Jacobian.
    bijection, one = made.bijection, x[0, 1]
    y, log_det = eqx.filter_jit(bijection.transform_and_log_det)(one, LABELS[1])
    back, inverse_log_det = bijection.inverse_and_log_det(y, LABELS[1])
    np.testing.assert_allclose(back, one, atol=1e-4)
    np.testing.assert_allclose(log_det, -inverse_log_det, atol=1e-4)
    jacobian = jax.jacfwd(bijection.transform)(one, LABELS[1])
    np.testing.assert_allclose(jnp.linalg.slogdet(jacobian)[1], log_det, atol=1e-3)
    np.testing.assert_allclose(Invert(bijection).transform(y, LABELS[1]), one, atol=1e-4)
    bound = sf.adapted(flow, "flowjax", jnp.int32(2))
    assert bound.cond_shape is None
    np.testing.assert_allclose(bound.log_prob(x[:, 1]), log_p[:, 1], rtol=1e-5)
    weights = jnp.array([0.2, 0.3, 0.5])  # of classes, which are not rounded
    bound = sf.adapted(flow, "flowjax", weights)
    np.testing.assert_allclose(bound.log_prob(x[:, 1]), flow.log_prob(x[:, 1], weights), rtol=1e-5)


@pytest.mark.slow
def test_flowjax_trains_it(pair):
    library("flowjax")
    import equinox as eqx
    from flowjax.train import fit_to_data

    x = 0.3 * jax.random.normal(KEY, (256, 2)) + 1.0
    made = sf.adapted(pair, "flowjax")
    before = made.log_prob(x).mean()
    trained, losses = fit_to_data(
        jax.random.key(0), made, data=x, max_epochs=3, learning_rate=1e-2, show_progress=False
    )
    assert trained.log_prob(x).mean() > before + 0.5 and len(losses["train"]) == 3
    assert eqx.tree_equal(jax.tree.structure(trained), jax.tree.structure(made))


@pytest.mark.slow
def test_distrax(flow):
    distrax = library("distrax")
    made = sf.adapted(flow, "distrax", LABELS)
    assert made.event_shape == (16,) and made.batch_shape == (3,)
    x, log_p = made.sample_and_log_prob(seed=KEY, sample_shape=(2,))
    np.testing.assert_allclose(made.log_prob(x), log_p, rtol=1e-5)
    np.testing.assert_allclose(flow.log_prob(x, LABELS), log_p, rtol=1e-5)
    bijector = made.bijector
    z, log_det = bijector.inverse_and_log_det(x)
    np.testing.assert_allclose(bijector.forward(z), x, atol=1e-5)
    np.testing.assert_allclose(bijector.forward_log_det_jacobian(z), -log_det, rtol=1e-4)
    chain = distrax.Chain([distrax.Inverse(bijector), bijector])
    np.testing.assert_allclose(chain.forward(z), z, atol=1e-4)
    assert bijector.same_as(bijector)
    # A distribution is an argument of jit, as those of the library are.
    np.testing.assert_allclose(jax.jit(lambda made, x: made.log_prob(x))(made, x), log_p, rtol=1e-5)


@pytest.mark.slow
def test_numpyro(flow):
    numpyro = library("numpyro")
    from numpyro.infer.util import log_density

    made = sf.adapted(flow, "numpyro", LABELS)
    assert made.event_shape == (16,) and made.batch_shape == (3,)
    x, intermediates = made.sample_with_intermediates(KEY, (2,))
    log_p = made.log_prob(x)
    np.testing.assert_allclose(made.log_prob(x, intermediates), log_p, rtol=1e-5)
    np.testing.assert_allclose(flow.log_prob(x, LABELS), log_p, rtol=1e-5)
    (transform,) = made.transforms
    z = transform.inv(x)
    np.testing.assert_allclose(transform(z), x, atol=1e-5)
    jacobian = jax.jacrev(lambda y: sf.adapted(flow, "numpyro", LABELS[1]).transforms[0].inv(y))(x[0, 1])
    expected = -jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(transform.log_abs_det_jacobian(z, x)[0, 1], expected, atol=1e-3)
    np.testing.assert_allclose(jax.jit(lambda made, x: made.log_prob(x))(made, x), log_p, rtol=1e-5)

    def model():
        with numpyro.plate("examples", 3):
            numpyro.sample("x", made)

    np.testing.assert_allclose(log_density(model, (), {}, {"x": x[0]})[0], log_p[0].sum(), rtol=1e-5)


@pytest.mark.slow
def test_numpyro_infers_behind_a_flow(pair):
    """x from the flow, observed with noise: the posterior mean of NUTS is that of quadrature."""
    numpyro = library("numpyro")
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    seen = jnp.array([0.4, -0.3])

    def model():
        x = numpyro.sample("x", sf.adapted(pair, "numpyro"))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=seen)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    axis = np.linspace(-4, 4, 161, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    log_weight = pair.log_prob(points) - 0.5 * jnp.sum((points - seen) ** 2, axis=-1) / 0.5**2
    weight = np.asarray(jax.nn.softmax(log_weight.reshape(-1))).reshape(log_weight.shape)
    expected = np.einsum("ij,ijk->k", weight, points)
    np.testing.assert_allclose(mcmc.get_samples()["x"].mean(axis=0), expected, atol=0.08)


@pytest.mark.slow
def test_tfp(flow, pair):
    library("tensorflow_probability.substrates.jax")
    made = sf.adapted(flow, "tfp", LABELS)
    assert made.event_shape == (16,) and made.batch_shape == (3,)
    x = made.sample(2, seed=jax.random.PRNGKey(0))
    np.testing.assert_allclose(made.log_prob(x), flow.log_prob(x, LABELS), rtol=1e-5)
    bijector = made.bijector
    z = bijector.inverse(x)
    np.testing.assert_allclose(bijector.forward(z), x, atol=1e-5)
    forward, inverse = bijector.forward_log_det_jacobian(z), bijector.inverse_log_det_jacobian(x)
    np.testing.assert_allclose(forward, -inverse, rtol=1e-4)
    assert bijector.forward_event_shape((16,)) == (16,)
    points = pair.sample(KEY, (5,))
    jacobian = jax.vmap(jax.jacrev(sf.adapted(pair, "tfp").bijector.inverse))(points)
    found = sf.adapted(pair, "tfp").bijector.inverse_log_det_jacobian(points)
    np.testing.assert_allclose(found, jnp.linalg.slogdet(jacobian)[1], atol=1e-4)
