"""Chains of `starflow_jax.editing` on posteriors that are known in closed form, and their diagnostics."""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.editing.burn_in import first_state
from starflow_jax.editing.chains import run_part
from starflow_jax.editing.convergence import effective_sample_size, split_r_hat
from starflow_jax.editing.langevin_moves import Point, langevin_move
from starflow_jax.editing.latent_moves import latent_hamiltonian_move, latent_move
from starflow_jax.editing.operators import BlockMeans, ChannelMean, GivenOperator, Identity, Mask, check_operator
from starflow_jax.editing.posterior import Posterior
from starflow_jax.editing.posterior_sampling import ChainOptions, joined, sample_posterior

SIZE = (2, 2, 1)
# Lower triangular, so that x = MEAN + FACTOR z has a covariance that is far from a multiple of the identity.
FACTOR = np.array([[1.0, 0, 0, 0], [0.8, 0.4, 0, 0], [0.1, -0.2, 0.3, 0], [0.5, 0.3, 0.1, 0.2]])
MEAN = np.array([0.3, -0.2, 0.1, 0.5])
SIGMA = 0.3
VISIBLE = np.array([True, False, True, False]).reshape(SIZE)


@flax.struct.dataclass
class Gaussian:
    """A Gaussian prior, with the interface of a flow."""

    factor: jax.Array
    mean: jax.Array

    def log_prob(self, x):
        flat = x.reshape(len(x), -1) - self.mean
        z = jax.scipy.linalg.solve_triangular(self.factor, flat.T, lower=True).T
        return self._log_density(z), z.reshape(x.shape)

    def data(self, z):
        flat = z.reshape(len(z), -1)
        return (flat @ self.factor.T + self.mean).reshape(z.shape), self._log_density(flat)

    def noise_gradient(self, x, gradient):
        # An approximation, as that of a flow is: it must not matter.
        return (gradient.reshape(len(x), -1) @ (self.factor + 0.1)).reshape(x.shape)

    def of_rows(self, rows):
        return self

    def _log_density(self, z):
        constant = 0.5 * z.shape[1] * jnp.log(2 * jnp.pi) + jnp.sum(jnp.log(jnp.diag(self.factor)))
        return -0.5 * jnp.sum(z**2, axis=1) - constant


PRIOR = Gaussian(jnp.asarray(FACTOR, jnp.float32), jnp.asarray(MEAN, jnp.float32))


def posterior_of(y, sigma=SIGMA, operator=None, free=None):
    """Posteriors of measurements [M, 2, 2, 1] of the visible values."""
    y = jnp.asarray(y, jnp.float32)
    return Posterior(PRIOR, operator or Mask(VISIBLE), y, jnp.full(len(y), sigma, jnp.float32), free)


def known_posterior(y, sigma=SIGMA):
    """Mean and covariance of x given y of the visible values, by the formulas of Gaussians."""
    a = np.eye(4)[VISIBLE.ravel()]
    covariance = FACTOR @ FACTOR.T
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + sigma**2 * np.eye(len(a)))
    return MEAN + gain @ (y.ravel()[VISIBLE.ravel()] - a @ MEAN), covariance - gain @ a @ covariance


COUNT, CHAINS = 150, 19
OPTIONS = ChainOptions(chains=CHAINS, candidates=4, draws=5, thin=6, burn_in=150, part=5, leapfrog=3)


@functools.cache
def problems():
    """Data from the prior [150, 2, 2, 1], and measurements of their visible values."""
    rng = np.random.default_rng(3)
    x = (MEAN + rng.normal(size=(COUNT, 4)) @ FACTOR.T).reshape(COUNT, *SIZE)
    return x, (x + SIGMA * rng.normal(size=x.shape)) * VISIBLE


@functools.cache
def drawn(moves, seed=0):
    options = dataclasses.replace(OPTIONS, moves=moves)
    return sample_posterior(posterior_of(problems()[1]), jax.random.key(seed), SIZE, options)


def whitened(draws, y, sigma=SIGMA, values=slice(None)):
    """The last draws of every posterior, which are standard normal where they have its mean and covariance."""
    found = []
    for x, measured in zip(draws.last, y, strict=True):
        mean, covariance = known_posterior(measured, sigma)
        factor = np.linalg.cholesky(covariance[values][:, values])
        found.append(np.linalg.solve(factor, (x.reshape(CHAINS, 4) - mean)[:, values].T).T)
    return np.concatenate(found)


@pytest.mark.parametrize("moves", ["mala", "latent-hamiltonian", pytest.param("both", marks=pytest.mark.slow)])
def test_draws_have_the_mean_and_covariance_of_the_posterior(moves):
    draws = drawn(moves)
    standard = whitened(draws, problems()[1])
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(np.cov(standard.T), np.eye(4), atol=0.12)
    used = draws.acceptance[:, np.isfinite(draws.acceptance[0])].mean(axis=0)
    assert np.all((used > 0.2) & (used < 0.9)), used


def test_intervals_cover_what_they_claim():
    # The range of 19 independent draws covers a further one with probability 18 / 20.
    x, draws = problems()[0], drawn("mala").last
    inside = (x > draws.min(axis=1)) & (x < draws.max(axis=1))
    assert abs(inside.mean() - 0.9) < 0.04


def test_unadjusted_moves_are_biased_where_exact_ones_are_not():
    # From exact draws of the posterior, with a step that is far too long for the unadjusted algorithm.
    y = problems()[1][:1]
    mean, covariance = known_posterior(y[0])
    rows = 20_000
    x = np.random.default_rng(0).multivariate_normal(mean, covariance, rows).reshape(rows, *SIZE)
    posterior, sigma = posterior_of(y), jnp.full(rows, SIGMA)

    @jax.jit
    def moved(x):
        point, ones = Point(x, posterior.terms(x)), jnp.ones_like(x)
        step, keys = jnp.full(rows, 0.04), jax.random.split(jax.random.key(1), 5)
        several = {"step": step, "variance": ones, "leapfrog": 3}
        return {
            "mala": langevin_move(posterior, point, keys[0], sigma, step, ones),
            "hamiltonian": langevin_move(posterior, point, keys[1], sigma, **several),
            "latent": latent_move(posterior, point, keys[2], sigma, jnp.full(rows, 0.5), gradient=False),
            "latent-hamiltonian": latent_hamiltonian_move(
                posterior, point, keys[4], sigma, jnp.full(rows, 0.3), 0.5 * ones, leapfrog=3
            ),
            "langevin": langevin_move(posterior, point, keys[3], sigma, step, ones, adjusted=False),
        }

    errors = {}
    for name, (point, probability) in moved(jnp.asarray(x, jnp.float32)).items():
        errors[name] = np.abs(np.cov(np.asarray(point.x).reshape(rows, 4).T) - covariance).max()
        assert probability.mean() > 0.2
    biased = errors.pop("langevin")
    assert max(errors.values()) < 0.007 < biased


@flax.struct.dataclass
class Bounded(Gaussian):
    """A Gaussian prior whose density is NaN beyond `bound`, and whose draws there are infinite."""

    bound: float = 1.0

    def log_prob(self, x):
        log_prior, z = super().log_prob(x)
        return jnp.where(jnp.abs(x[:, 0, 0, 0]) < self.bound, log_prior, jnp.nan), z

    def data(self, z):
        x, log_prior = super().data(z)
        return jnp.where(jnp.abs(x[:, :1, :1, :1]) < self.bound, x, jnp.inf), log_prior


def test_what_is_not_finite_stops_no_other_chain():
    posterior = dataclasses.replace(posterior_of(problems()[1][:2]), prior=Bounded(PRIOR.factor, PRIOR.mean))
    options = ChainOptions(chains=8, candidates=4, draws=4, thin=5, burn_in=100, part=4, moves="langevin")
    draws = sample_posterior(posterior, jax.random.key(0), SIZE, options)
    assert np.isfinite(draws.x).all() and np.isfinite(draws.log_posterior).all()
    assert np.abs(np.diff(draws.x[:, :, :, 1, 1, 0], axis=2)).max(axis=(1, 2)).min() > 0.01
    # Unadjusted moves have a step that is adapted, too; it begins at 4 ** (-1 / 3).
    assert np.all(np.abs(draws.steps[:, 0] - 4.0 ** (-1 / 3)) > 0.05), draws.steps
    assert 0.3 < draws.acceptance[:, 0].mean() < 0.9, draws.acceptance
    nowhere = dataclasses.replace(posterior, prior=Bounded(PRIOR.factor, PRIOR.mean, jnp.float32(0.0)))
    with pytest.raises(
        ValueError, match="prior must give finite draws and densities, got none among 32 draws for 2 of"
    ):
        sample_posterior(nowhere, jax.random.key(0), SIZE, options)


@pytest.mark.slow
@pytest.mark.parametrize("leading", [None, jnp.arange(4).reshape(SIZE) == 0], ids=["drawn", "continued"])
def test_exact_values_are_held_and_the_others_have_their_conditional_distribution(leading):
    x = problems()[0] * VISIBLE
    posterior = dataclasses.replace(posterior_of(x, sigma=0.05, free=jnp.asarray(~VISIBLE)), leading=leading)
    draws = sample_posterior(posterior, jax.random.key(0), SIZE, OPTIONS, exact=x.astype(np.float32))
    shown = np.broadcast_to(x.astype(np.float32)[:, None], draws.last.shape)
    np.testing.assert_array_equal(draws.last[..., VISIBLE], shown[..., VISIBLE])
    standard = whitened(draws, x, 1e-6, np.flatnonzero(~VISIBLE.ravel()))
    np.testing.assert_allclose(np.cov(standard.T), np.eye(2), atol=0.12)
    assert np.isnan(draws.ess[0][VISIBLE]).all()
    options = dataclasses.replace(OPTIONS, moves="latent")
    with pytest.raises(ValueError, match=r"moves must be of data \(mala, .* where values are held, got latent"):
        sample_posterior(posterior, jax.random.key(0), SIZE, options, exact=x)


def test_chains_begin_at_continuations_of_leading_values():
    """Where nothing else is known, they have their conditional distribution from the first."""
    y, leading = problems()[0] * VISIBLE, np.arange(4).reshape(SIZE) == 0
    posterior = dataclasses.replace(posterior_of(y, operator=Mask(leading)), leading=jnp.asarray(leading))
    x = np.asarray(first_state(posterior, jax.random.key(0), CHAINS, SIZE).point.x).reshape(COUNT, CHAINS, 4)
    np.testing.assert_array_equal(x[..., 0], np.repeat(y.reshape(COUNT, 4)[:, :1].astype(np.float32), CHAINS, axis=1))
    # The first value is MEAN[0] plus the first noise, as FACTOR[0, 0] is 1.
    mean = MEAN + FACTOR[:, 0] * (y.reshape(COUNT, 4)[:, :1] - MEAN[0])
    standard = np.linalg.solve(FACTOR[1:, 1:], (x - mean[:, None])[..., 1:].reshape(-1, 3).T).T
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=0.08)
    np.testing.assert_allclose(np.cov(standard.T), np.eye(3), atol=0.12)


def test_equal_keys_give_equal_draws_and_every_part_is_the_same_program():
    first = drawn("mala")
    before = run_part._cache_size()
    again = sample_posterior(posterior_of(problems()[1]), jax.random.key(0), SIZE, OPTIONS)
    assert run_part._cache_size() == before
    np.testing.assert_array_equal(first.x, again.x)
    assert np.abs(first.x[:, 0] - first.x[:, 1]).min(axis=0).max() > 0.0
    assert first.x.shape == (COUNT, CHAINS, 5, *SIZE) and first.log_posterior.shape == (COUNT, CHAINS, 5)
    both = joined([first, first.first(2)])
    np.testing.assert_array_equal(both.x[COUNT:], first.x[:2])
    np.testing.assert_array_equal(both.first(COUNT).x, first.x)


def test_log_posterior_is_that_of_the_draws():
    draws, y = drawn("mala"), jnp.asarray(problems()[1], jnp.float32)
    x = jnp.asarray(draws.x[:, 3, -1])
    expected = PRIOR.log_prob(x)[0] - 0.5 * jnp.sum((x - y) ** 2 * VISIBLE, axis=(1, 2, 3)) / SIGMA**2
    np.testing.assert_allclose(draws.log_posterior[:, 3, -1], expected, rtol=1e-4, atol=2e-3)


@flax.struct.dataclass
class TwoModes:
    """Two narrow modes of equal weight, which no move crosses."""

    width: float = 0.1

    def log_prob(self, x):
        modes = [-0.5 * ((x - centre) / self.width) ** 2 for centre in (-2.0, 2.0)]
        return jnp.sum(jax.nn.logsumexp(jnp.stack(modes), axis=0), axis=(1, 2, 3)), x

    def of_rows(self, rows):
        return self

    def data(self, z):
        x = jnp.where(jnp.abs(z) % 0.1 < 0.05, z * self.width - 2.0, z * self.width + 2.0)
        return x, self.log_prob(x)[0]


@pytest.mark.slow
def test_annealing_weighs_modes_as_the_posterior_does():
    y = 0.05
    posterior = Posterior(TwoModes(), Identity(), jnp.full((1, 1, 1, 1), y), jnp.full(1, 0.5))
    options = ChainOptions(chains=2000, candidates=1, draws=4, thin=1, burn_in=40, part=4)
    draws = sample_posterior(posterior, jax.random.key(0), (1, 1, 1), options)
    # The measurement at the centre of a mode has the density N(y; +-2, 0.1^2 + 0.5^2).
    ratio = np.exp(2.0 * 2.0 * y / (0.1**2 + 0.5**2))
    assert abs((draws.last > 0).mean() - ratio / (1.0 + ratio)) < 0.05


def test_effective_sample_size_and_r_hat_of_known_chains(monkeypatch):
    rng = np.random.default_rng(0)
    chains, count, correlation = 8, 4000, 0.9
    noise = rng.normal(size=(chains, count))
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0] / np.sqrt(1 - correlation**2)
    for step in range(1, count):
        x[:, step] = correlation * x[:, step - 1] + noise[:, step]
    sizes = effective_sample_size(np.stack([x, rng.normal(size=x.shape), np.ones_like(x)], axis=-1))
    expected = chains * count * (1 - correlation) / (1 + correlation)
    assert abs(sizes[0] / expected - 1) < 0.15 and abs(sizes[1] / x.size - 1) < 0.1 and np.isnan(sizes[2])
    r_hat = split_r_hat(np.stack([x, x + 3.0 * np.arange(chains)[:, None]], axis=-1))
    assert r_hat[0] < 1.02 and r_hat[1] > 2.0
    wide = np.stack([x[:, :500] * scale for scale in (1.0, 2.0, 3.0)], axis=-1)
    monkeypatch.setattr("starflow_jax.editing.convergence._TOGETHER", 1)
    np.testing.assert_allclose(effective_sample_size(wide), effective_sample_size(x[:, :500, None])[[0, 0, 0]])
    assert np.isnan(split_r_hat(x[:, :3])).all() and np.isnan(effective_sample_size(x[:, :3])).all()


def test_effective_sample_size_is_that_of_numpyro():
    diagnostics = pytest.importorskip("numpyro.diagnostics")
    x = np.cumsum(np.random.default_rng(1).normal(size=(4, 101, 3)), axis=1)
    halves = np.concatenate([x[:, :50], x[:, -50:]])
    np.testing.assert_allclose(effective_sample_size(x), diagnostics.effective_sample_size(halves), rtol=1e-5)
    np.testing.assert_allclose(split_r_hat(x[:, :100]), diagnostics.split_gelman_rubin(x[:, :100]), rtol=1e-6)


def test_operators_measure_what_they_say():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 6, 2)), jnp.float32)
    means = np.asarray(BlockMeans(2)(x))
    assert means.shape == (2, 3, 2, 3, 2)
    np.testing.assert_allclose(means[1, 2, 1, 0], np.asarray(x)[1, 2, 2:4, 0:2].mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(ChannelMean()(x), np.asarray(x).mean(axis=-1, keepdims=True), rtol=1e-5)
    assert check_operator(ChannelMean(), x.shape[1:]) == (3, 4, 6, 1)
    frame = np.arange(3).reshape(3, 1, 1, 1) != 1
    np.testing.assert_array_equal(Mask(frame)(x)[:, 1], 0.0)
    np.testing.assert_array_equal(Mask(frame)(x)[:, ::2], x[:, ::2])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x**2, "operator given must be linear"),
        (lambda x: x + 1.0, "operator given must be linear"),
        (lambda x: x.mean(axis=0), "operator given must keep the axis of examples"),
        (lambda x: x - x.mean(axis=0), "operator given must measure every example alone"),
        (lambda x: x.nothing, "operator given failed with AttributeError"),
        (lambda x: x if len(x) > 1 else x.nothing, "operator given failed with AttributeError"),
        (lambda x: x * 1j, "operator given must give real floating-point numbers, got complex64"),
    ],
)
def test_functions_that_are_no_operators_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        check_operator(GivenOperator("given", function), (4, 4, 1))
    with pytest.raises(ValueError, match="factor must divide the 4 rows"):
        check_operator(BlockMeans(3), (4, 4, 1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("chains", 0, "chains must be an integer"),
        ("burn_in", -1, "burn_in must be an integer"),
        ("moves", "x", "moves must be one of"),
        ("step", 0.0, "step must be None or"),
        ("leapfrog", 1.5, "leapfrog must be an integer"),
    ],
)
def test_options_of_chains_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        ChainOptions(**{field: value})
