"""Sampling of densities that are given as functions, against closed forms and quadrature."""

import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import run_on_eight_devices
from random_flows import random_flow
from scipy.special import softmax
from sweep_runs import write_run

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import FlowConfig
from starflow_jax.experiments.lattice_quadrature import brute_force_log_z, lattice_log_z
from starflow_jax.flows.parameters import split
from starflow_jax.targets import Normal, WeightedSamples, systematic
from starflow_jax.targets.annealing import metropolis_langevin, next_temperature
from starflow_jax.targets.importance import _draw
from starflow_jax.targets.tuning import reverse_divergence

PAIR = FlowConfig(
    family="tarflow", channels=1, image_size=(2, 1), width=8, num_blocks=2, layers_per_block=1, head_dim=8
)
KEY, NUM = jax.random.key(0), 4000
CENTRE, WIDTH = jnp.array([0.6, -0.4]), 0.7
LOG_Z = float(3.0 + np.log(2 * np.pi * WIDTH**2))


def log_density(x):
    """e^3 times a normal density without its normaliser."""
    return 3.0 - 0.5 * jnp.sum((x - CENTRE) ** 2, axis=-1) / WIDTH**2


def wells(x):
    """Two wells in the first number, a normal density in the second."""
    return -(x[:, 0] ** 4) + 6 * x[:, 0] ** 2 + 0.5 * x[:, 0] - 0.5 * x[:, 1] ** 2


def wells_on_a_line():
    """A grid, and the density of the first number of `wells` on it without its normaliser."""
    grid = np.linspace(-4, 4, 4001)
    return grid, np.exp(-(grid**4) + 6 * grid**2 + 0.5 * grid)


@flax.struct.dataclass
class Shifted:
    """What `fit` and `tune` use of a distribution, with two parameters: x = mean + scale * z."""

    params: dict[str, jax.Array]
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def normal(self):
        return Normal(self.shape, self.params["mean"], jnp.exp(self.params["log_scale"]))

    def sample_and_log_prob(self, key, shape=(), condition=None):
        return self.normal.sample_and_log_prob(key, shape)

    def log_prob(self, x, condition=None):
        return self.normal.log_prob(x)


@pytest.fixture(scope="module")
def shifted():
    return Shifted({"mean": jnp.zeros(2), "log_scale": jnp.zeros(2)}, (2,))


@pytest.fixture(scope="module")
def flow():
    """A flow that knows nothing of the targets."""
    return sf.distribution(random_flow(PAIR), shape=(2,))


@pytest.fixture(scope="module")
def drawn():
    return sf.targets.draw(Normal((2,)), log_density, KEY, NUM)


def test_a_target_equal_to_the_proposal_has_equal_weights():
    normal = Normal((2,), mean=CENTRE, scale=WIDTH)
    found = sf.targets.draw(normal, log_density, KEY, NUM)
    np.testing.assert_allclose(found.effective_sample_size, NUM, rtol=1e-4)
    np.testing.assert_allclose(found.log_z, LOG_Z, rtol=1e-5)
    assert found.log_z_error < 1e-5


def test_weights_give_log_z_moments_and_the_effective_sample_size(drawn):
    assert abs(drawn.log_z - LOG_Z) < 4 * drawn.log_z_error < 0.1
    np.testing.assert_allclose(drawn.mean(drawn.x), CENTRE, atol=0.06)
    # E[w]^2 / E[w^2] of two normal densities.
    square, mean = WIDTH**2, float(jnp.sum(CENTRE**2))
    expected = square * (2 - square) * np.exp(-mean / (2 - square))
    np.testing.assert_allclose(drawn.effective_sample_size / NUM, expected, rtol=0.1)


def test_kish_counts_equal_weights_and_errors_agree(drawn):
    some = WeightedSamples(jnp.zeros((8, 1)), jnp.where(jnp.arange(8) < 5, 700.0, -jnp.inf), jnp.zeros(8))
    np.testing.assert_allclose(some.effective_sample_size, 5.0, rtol=1e-6)
    np.testing.assert_allclose(some.log_z, 700.0 + np.log(5 / 8), rtol=1e-6)
    # The relative variance of the weights is n / ESS - 1.
    expected = np.sqrt(1 / drawn.effective_sample_size - 1 / NUM)
    np.testing.assert_allclose(drawn.log_z_error, expected, rtol=1e-3)
    np.testing.assert_allclose(drawn.bootstrap_log_z_error(KEY, 400), expected, rtol=0.15)


def test_batches_are_cut_to_the_number():
    normal = Normal((2,))
    found = sf.targets.draw(normal, log_density, KEY, 1000, batch_size=300)
    assert found.x.shape == (1000, 2) and len(np.unique(found.x[:, 0])) == 1000
    np.testing.assert_allclose(found.log_q, normal.log_prob(found.x), atol=1e-5)
    assert abs(found.log_z - LOG_Z) < 4 * found.log_z_error


def test_clipping_lowers_the_largest_weights_alone(drawn):
    clipped = drawn.clipped(0.01)
    lowered = np.asarray(clipped.log_weights < drawn.log_weights)
    assert lowered.sum() == 40
    assert drawn.log_weights[lowered].min() > drawn.log_weights[~lowered].max()
    assert clipped.effective_sample_size > drawn.effective_sample_size
    np.testing.assert_array_equal(drawn.clipped(0.0).log_weights, drawn.log_weights)


def test_systematic_resampling_rounds_the_expected_counts():
    log_weights = jnp.log(jnp.array([0.0, 0.5, 0.03, 0.0, 0.27, 0.2, 0.0]))
    for seed in range(20):
        counts = np.bincount(systematic(jax.random.key(seed), log_weights, 50), minlength=7)
        assert counts.sum() == 50
        assert (np.abs(counts - 50 * np.exp(np.asarray(log_weights))) < 1).all()


def test_resampled_points_follow_the_target(drawn):
    np.testing.assert_allclose(drawn.resampled(KEY, 2000).mean(axis=0), CENTRE, atol=0.08)


def test_next_temperature_has_the_conditional_effective_sample_size():
    log_ratio = 3.0 * jax.random.normal(KEY, (500,))
    log_weights = jax.random.normal(jax.random.key(1), (500,))
    after = jax.jit(next_temperature)(log_ratio, log_weights, 0.2, 0.8)
    weights = np.asarray(jax.nn.softmax(log_weights), np.float64)
    increment = np.exp((float(after) - 0.2) * np.asarray(log_ratio))
    assert 0.2 < after < 1
    np.testing.assert_allclose((weights @ increment) ** 2 / (weights @ increment**2), 0.8, rtol=1e-3)
    assert jax.jit(next_temperature)(1e-3 * log_ratio, log_weights, 0.2, 0.8) == 1


def test_langevin_moves_keep_the_target():
    def density(x):
        return jax.vmap(jax.value_and_grad(lambda one: -jnp.sum(one**4)))(x)

    @jax.jit
    def chain(x, key):
        def move(carry, key):
            carry, moved = metropolis_langevin(density, *carry, key=key, step=0.3)
            return carry, moved.mean()

        (x, _, _), moved = jax.lax.scan(move, (x, *density(x)), jax.random.split(key, 60))
        return x, moved.mean()

    x, moved = chain(0.5 * jax.random.normal(KEY, (4000, 1)), jax.random.key(1))
    grid = np.linspace(-3, 3, 2001)
    exact = (np.exp(-(grid**4)) @ grid**2) / np.exp(-(grid**4)).sum()
    np.testing.assert_allclose(jnp.mean(x**2), exact, rtol=0.05)
    assert 0.3 < moved < 0.95  # an unadjusted move of this size would miss the moment


def test_annealing_finds_log_z_and_both_wells():
    grid, density = wells_on_a_line()
    exact = np.log(density.sum() * (grid[1] - grid[0])) + 0.5 * np.log(2 * np.pi)
    runs = [
        sf.targets.anneal(Normal((2,), scale=1.5), wells, jax.random.key(seed), 2000, conditional=0.98)
        for seed in range(5)
    ]
    estimates = np.array([run.log_z for run in runs])
    error = estimates.std(ddof=1) / np.sqrt(len(runs))
    assert error < 0.03
    assert abs(estimates.mean() - exact) < 4 * error
    right = np.mean([run.samples.mean(run.samples.x[:, 0] > 0) for run in runs])
    np.testing.assert_allclose(right, density[grid > 0].sum() / density.sum(), atol=0.05)
    one, levels = runs[0], int(runs[0].levels)
    assert (np.diff(one.temperature[:levels]) > 0).all() and one.temperature[levels - 1] == 1
    assert np.isnan(one.temperature[levels:]).all() and bool(one.resampled.any()) and bool(one.reached)


@pytest.mark.parametrize(("mass", "coupling"), [(-4.0, 8.0), (-1.0, 2.0)])
def test_transfer_matrix_of_a_lattice_agrees_with_quadrature(mass, coupling):
    np.testing.assert_allclose(lattice_log_z(2, mass, coupling), brute_force_log_z(mass, coupling), atol=2e-4)
    # The trace by eigenvalues is that of the whole matrix.
    whole, summed = (lattice_log_z(3, mass, coupling, rank=4, dense=dense) for dense in (64, 10))
    np.testing.assert_allclose(summed, whole, atol=1e-4)


def test_each_program_is_compiled_once(drawn):
    count = _draw._cache_size()
    for seed in range(3):
        sf.targets.draw(Normal((2,), mean=CENTRE, scale=1.0 + seed), log_density, jax.random.key(seed), NUM)
    assert _draw._cache_size() <= count + 1
    together = jax.jit(lambda key: sf.targets.draw(Normal((2,)), log_density, key, 8).log_z)
    assert together(KEY) == sf.targets.draw(Normal((2,)), log_density, KEY, 8).log_z


def test_gradient_of_the_reverse_divergence_is_exact():
    def divergence(mean):  # of N(mean, 1) from the target exp(-(x - 2)^2 / 2)
        x = jax.lax.stop_gradient(mean + jax.random.normal(KEY, (50_000,)))
        log_q = -0.5 * (x - mean) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
        return reverse_divergence(log_q, -0.5 * (x - 2.0) ** 2)

    value, gradient = jax.value_and_grad(divergence)(0.5)
    np.testing.assert_allclose(value, 0.5 * 1.5**2 - 0.5 * np.log(2 * np.pi), atol=0.05)
    np.testing.assert_allclose(gradient, -1.5, atol=0.05)
    np.testing.assert_allclose(jax.grad(divergence)(2.0), 0.0, atol=1e-5)  # without variance at the optimum


def test_rounds_raise_the_effective_sample_size_and_resume(shifted, tmp_path):
    options = {"num": 1000, "steps": 60, "batch_size": 128, "lr": 3e-2, "minimum": 0.0}
    whole = sf.targets.fit(shifted, log_density, KEY, rounds=2, **options)
    sf.targets.fit(shifted, log_density, KEY, rounds=1, folder=tmp_path / "kept", **options)
    resumed = sf.targets.fit(shifted, log_density, KEY, rounds=2, folder=tmp_path / "kept", **options)
    jax.tree.map(np.testing.assert_array_equal, whole.distribution.params, resumed.distribution.params)
    assert [one.method for one in resumed.rounds] == ["drawn", "drawn"]
    assert whole.rounds[0].effective < 0.6 and whole.rounds[1].effective > 0.9
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["parameters-2.safetensors", "rounds.json"]
    with pytest.raises(ValueError, match="rounds must be at least the 2"):
        sf.targets.fit(shifted, log_density, KEY, rounds=1, folder=tmp_path / "kept", **options)
    with pytest.raises(ValueError, match=r"with other arguments: lr=0\.03 instead of 0\.1"):
        sf.targets.fit(shifted, log_density, KEY, rounds=2, folder=tmp_path / "kept", **(options | {"lr": 0.1}))
    (tmp_path / "kept" / "rounds.json").write_text(json.dumps({"rounds": [{}]}))
    with pytest.raises(ValueError, match="is no record of rounds"):
        sf.targets.fit(shifted, log_density, KEY, rounds=2, folder=tmp_path / "kept", **options)


BAD_CALLS = {
    "target must return [3] log-densities for 3 points, got float32 of shape [3, 2]": lambda shifted: sf.targets.draw(
        shifted, lambda x: x, KEY, 3
    ),
    "target must be a function": lambda shifted: sf.targets.draw(shifted, 3.0, KEY, 3),
    "target failed for float32 points of shape [3, 2]": lambda shifted: sf.targets.draw(
        shifted, lambda x: x @ x, KEY, 3
    ),
    "target must be finite or -inf, got NaN or infinity at 3 of 3": lambda shifted: sf.targets.draw(
        Normal((2,)), lambda x: jnp.nan * x[:, 0], KEY, 3
    ),
    "target must be above -inf somewhere": lambda shifted: sf.targets.draw(
        Normal((2,)), lambda x: jnp.full(3, -jnp.inf), KEY, 3
    ),
    "num must be an integer >= 1, got 0": lambda shifted: sf.targets.draw(shifted, log_density, KEY, 0),
    "batch_size must be": lambda shifted: sf.targets.draw(shifted, log_density, KEY, 3, batch_size=0),
    "condition must be None for Normal": lambda shifted: sf.targets.draw(
        Normal((2,)), log_density, KEY, 3, condition=1
    ),
    "conditional must be above 0 and below 1": lambda shifted: sf.targets.anneal(
        shifted, log_density, KEY, 10, conditional=1.0
    ),
    "threshold must be at most 1": lambda shifted: sf.targets.anneal(shifted, log_density, KEY, 10, threshold=2.0),
    "step must be above 0": lambda shifted: sf.targets.anneal(shifted, log_density, KEY, 10, step=0.0),
    "max_levels must be larger: 200 levels reached": lambda shifted: sf.targets.anneal(
        Normal((2,), scale=1.5), wells, KEY, 2000, conditional=0.99999
    ),
    "x must be [n, 2] with at least one point, got [0, 2]": lambda shifted: sf.targets.tune(
        shifted, jnp.zeros((0, 2)), KEY, steps=1
    ),
    "target must be given for reverse=0.5": lambda shifted: sf.targets.tune(
        shifted, jnp.zeros((3, 2)), KEY, steps=1, reverse=0.5
    ),
    "reverse must be at most 1": lambda shifted: sf.targets.tune(shifted, jnp.zeros((3, 2)), KEY, steps=1, reverse=2.0),
    "share must be below 1": lambda shifted: WeightedSamples(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2)).clipped(1.0),
    "minimum must be below 1": lambda shifted: sf.targets.fit(shifted, log_density, KEY, minimum=1.0),
    "rounds must be": lambda shifted: sf.targets.fit(shifted, log_density, KEY, rounds=0),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_arguments_are_refused(shifted, message):
    with pytest.raises(ValueError) as caught:
        BAD_CALLS[message](shifted)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_mesh_draws_tunes_and_anneals_as_one_device_does():
    found = json.loads(run_on_eight_devices("targets_on_eight_devices.py"))
    assert found["devices"] == 8 and found["divided"]
    assert found["levels"][0] == found["levels"][1] > 2
    assert max(found["errors"].values()) < 1e-5, found


@pytest.mark.slow
def test_command_weights_samples_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = sf.DataConfig(source="two_moons", noise="none")
    write_run(tmp_path / "run", PAIR, data, {4: split(random_flow(PAIR))[1]})
    (tmp_path / "energies.py").write_text(
        "def log_density(x):\n    return 3.0 - 0.5 * ((x - 0.1) ** 2).sum(axis=1)\n\nvalue = 1\n"
    )
    command = ["draw-target", "--workdir", "run", "--no-compilation-cache", "--num", "3000", "--out", "points.npz"]
    named = [*command, "--target", "energies.py:log_density"]
    assert main([*named, "--json", "weights.json"]) == 0
    figures, points = json.loads((tmp_path / "weights.json").read_text()), np.load(tmp_path / "points.npz")
    assert points["x"].shape == (3000, 2)
    assert abs(figures["log_z"] - 3.0 - np.log(2 * np.pi)) < 5 * figures["log_z_error"]
    np.testing.assert_allclose(
        1 / np.sum(softmax(points["log_weight"]) ** 2), figures["effective_sample_size"], rtol=1e-3
    )
    run = sf.distribution(tmp_path / "run")
    np.testing.assert_allclose(points["log_q"][:50], run.log_prob(points["x"][:50]), atol=1e-4)
    assert main([*named, "--resample", "500", "--clip", "0.01"]) == 0
    resampled = np.load(tmp_path / "points.npz")
    assert sorted(resampled) == ["x"] and resampled["x"].shape == (500, 2)
    np.testing.assert_allclose(resampled["x"].mean(axis=0), 0.1, atol=0.2)
    capsys.readouterr()
    for name, message in (("other.py:f", "does not exist"), ("energies.py:value", "must define value()")):
        assert main([*command, "--target", name]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_flow_learns_by_its_own_samples(flow):
    options = {"num": 1000, "steps": 100, "batch_size": 128, "lr": 2e-2, "annealing": {"moves": 1}}
    fitted = sf.targets.fit(flow, log_density, KEY, rounds=2, start=Normal((2,)), reverse=0.5, **options)
    assert [one.method for one in fitted.rounds] == ["annealed", "drawn"]
    found = sf.targets.draw(fitted.distribution, log_density, jax.random.key(1), NUM)
    assert found.effective_sample_size > 0.9 * NUM
    assert abs(found.log_z - LOG_Z) < 4 * found.log_z_error
    with pytest.raises(ValueError, match="condition must be None for this flow"):
        sf.targets.draw(flow, log_density, KEY, 3, condition=np.arange(3))


@pytest.mark.slow
def test_the_reverse_divergence_teaches_a_flow_without_points(flow):
    tuned, losses = sf.targets.tune(
        flow, None, KEY, steps=300, lr=1e-2, batch_size=128, target=log_density, reverse=1.0
    )
    found = sf.targets.draw(tuned, log_density, jax.random.key(1), NUM)
    assert found.effective_sample_size > 0.9 * NUM
    np.testing.assert_allclose(losses[-30:].mean(), -LOG_Z, atol=0.02)
