"""Bits/dim of a sweep against densities that are known in closed form, and against integrals by quadrature."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import random_flow
from sweep_runs import params_of, swept, write_arrays, write_run

from starflow_jax.core.config import DataConfig, FlowConfig
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun
from starflow_jax.data import Source
from starflow_jax.evaluation.likelihood.image_likelihood import all_dequantised
from starflow_jax.models.autoencoders import PatchPCA, save_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.tiled import Tiled
from starflow_jax.sweeps import read_examples
from starflow_jax.sweeps.latent_scale import log_scale

# Two tokens of one number, so that a grid of the plane is all there is to integrate over.
PLANE = FlowConfig(
    channels=1, image_size=(1, 2), width=8, head_dim=8, num_blocks=2, layers_per_block=1, sos=True, scale="softplus",
)  # fmt: skip
# Every token gets the same mean and scale from a bias, whatever came before: an affine map, and a Gaussian density.
GAUSSIAN = FlowConfig(
    channels=1, image_size=2, width=8, head_dim=8, num_blocks=2, layers_per_block=1, sos=True, scale="exp",
)  # fmt: skip
# By block: log scale and mean.
AFFINES = ((-0.7, 0.2), (0.3, -0.4))


def gaussian_params():
    params = params_of(random_flow(GAUSSIAN))
    for index, values in enumerate(AFFINES):
        out = params["blocks"][str(index)]["proj_out"]
        out["kernel"], out["bias"] = jnp.zeros_like(out["kernel"]), jnp.asarray(values, jnp.float32)
    return params


def gaussian():
    """Mean and standard deviation of the density: x = m0 + s0 (m1 + s1 z)."""
    (a0, m0), (a1, m1) = AFFINES
    return m0 + math.exp(a0) * m1, math.exp(a0 + a1)


@pytest.fixture(scope="module")
def affine(tmp_path_factory):
    """A run whose density is a Gaussian, on images of 256 levels, and what a sweep says of it."""
    home = tmp_path_factory.mktemp("affine")
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 1))
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", images)))
    run = write_run(home / "run", GAUSSIAN, data, {1: gaussian_params()})
    config = SweepConfig(
        "affine",
        (SweepRun(str(run)),),
        (SweepData("bytes"), SweepData("17 levels", levels=17)),
        noise=("uniform", 0.1),
        draws=8,
        batch_size=32,
    )
    heard = swept(config, home / "sweep")
    return home, images, {(row["data"], row["noise"]): row for row in heard.rows.values()}


class Levels:
    """Images of so many levels, as a source."""

    name, num_classes = "levels", 1

    def __init__(self, images, levels):
        self._images, self.levels = images, levels

    def __len__(self):
        return len(self._images)

    def __getitem__(self, place):
        return {"image": self._images[place].astype(np.uint8), "label": np.int32(0)}


@pytest.mark.parametrize(("name", "levels"), [("bytes", 256), ("17 levels", 17)])
def test_bits_of_a_gaussian_are_those_of_its_formula(affine, name, levels):
    """Dequantised data: the numbers, the noise and the constant log2(levels / 2) (128 of bytes), all in float64."""
    home, images, rows = affine
    source: Source = Levels(images * levels // 256, levels)
    x = all_dequantised(jax.random.key(0), source, 8).astype(np.float64)  # [draws, n, 2, 2, 1]
    mean, std = gaussian()
    log_p = (-0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))).sum(axis=(2, 3, 4))
    row = rows[name, "uniform"]
    np.testing.assert_allclose(read_examples(home / "sweep", row["cell"])["log_prob"], log_p.T, rtol=1e-6)
    expected = (-log_p / 4 + math.log(levels / 2)) / math.log(2)
    assert row["bits_per_dim"] == pytest.approx(expected.mean(), rel=1e-6)
    assert row["nats_per_dim"] == pytest.approx(log_p.mean() / 4, rel=1e-6)
    assert row["example_error"] == pytest.approx(expected.mean(axis=0).std(ddof=1) / math.sqrt(21), rel=1e-5)
    assert row["draw_error"] == pytest.approx(expected.mean(axis=1).std(ddof=1) / math.sqrt(8), rel=1e-5)


def test_the_mean_over_the_noise_is_that_of_the_integral(affine):
    """E over u of ((a + b u) - m)^2 is (a - m)^2 + (a - m) b + b^2 / 3: no random number in what is expected."""
    _, images, rows = affine
    mean, std = gaussian()
    left, width = 2 * images / 256 - 1 - mean, 2 / 256
    square = (left**2 + left * width + width**2 / 3).mean()
    expected = (0.5 * square / std**2 + math.log(std * math.sqrt(2 * math.pi)) + math.log(128)) / math.log(2)
    row = rows["bytes", "uniform"]
    assert abs(row["bits_per_dim"] - expected) < 4 * row["draw_error"]
    noisy = rows["bytes", "gaussian"]  # around 2 v / 255 - 1
    square = ((2 * images / 255 - 1 - mean) ** 2).mean() + 0.1**2
    expected = (0.5 * square / std**2 + math.log(std * math.sqrt(2 * math.pi)) + math.log(128)) / math.log(2)
    assert abs(noisy["bits_per_dim"] - expected) < 4 * noisy["draw_error"]


def test_the_terms_are_the_prior_and_the_constant_logdets(affine):
    _, _, rows = affine
    for row in rows.values():
        np.testing.assert_allclose(row["logdet_bits"], [a / math.log(2) for a, _ in AFFINES], rtol=1e-6)
        total = math.log2(row["levels"] / 2) + row["prior_bits"] + sum(row["logdet_bits"])
        assert row["bits_per_dim"] == pytest.approx(total, rel=1e-12)


LEVELS = 4  # of each of two pixels: sixteen images are all there are


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A random flow of the plane; its density on a fine grid; and every image of two pixels, swept."""
    home = tmp_path_factory.mktemp("plane")
    flow = random_flow(PLANE)
    images = np.asarray(list(itertools.product(range(LEVELS), repeat=2))).reshape(-1, 1, 2, 1) * (256 // LEVELS)
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", images)))
    run = write_run(home / "run", PLANE, data, {1: params_of(flow)})
    config = SweepConfig(
        "plane", (SweepRun(str(run)),), (SweepData(levels=LEVELS),), noise=("uniform",), draws=64, batch_size=1024
    )
    (row,) = swept(config, home / "sweep").rows.values()

    density = jax.jit(lambda x: flow.log_prob(x.reshape(-1, 1, 2, 1)))

    def log_p(x):
        return np.asarray(density(jnp.asarray(x, jnp.float32)), np.float64)

    return home, row, log_p


def test_the_density_integrates_to_one(plane):
    _, _, log_p = plane
    side = np.linspace(-9, 9, 400)  # smooth and all but zero at the border: the sum is exact to all its digits
    points = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    step = side[1] - side[0]
    assert np.exp(log_p(points)).sum() * step**2 == pytest.approx(1.0, abs=1e-4)


def test_bits_are_those_of_the_integral_and_bound_the_code_length(plane):
    """Gauss-Legendre quadrature over the cell of every image: of log p for the mean, of p for the probability."""
    home, row, log_p = plane
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    u = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    w = np.outer(weights, weights).ravel()
    expected, length = [], []
    for v in itertools.product(range(LEVELS), repeat=2):
        nats = log_p(2 * (np.asarray(v) + u) / LEVELS - 1)
        expected.append((math.log(LEVELS / 2) - (w @ nats) / 2) / math.log(2))
        length.append((math.log(LEVELS / 2) - math.log(w @ np.exp(nats)) / 2) / math.log(2))
    assert abs(row["bits_per_dim"] - np.mean(expected)) < 4 * row["draw_error"] < 0.05
    assert np.all(np.asarray(length) <= np.asarray(expected))
    found = read_examples(home / "sweep", row["cell"])["log_prob"]
    bits = (math.log(LEVELS / 2) - found / 2) / math.log(2)
    errors = bits.std(axis=1, ddof=1) / 8
    assert np.all(np.abs(bits.mean(axis=1) - expected) < 5 * errors)


LATENTS = FlowConfig(
    channels=2, image_size=2, width=8, head_dim=8, num_blocks=1, layers_per_block=1, sos=True, scale="exp",
)  # fmt: skip


def test_scaled_latents(tmp_path):
    """log p of raw latents is that of scaled ones plus log |ds/dr|: two scalings, the same raw density, the same bits.

    The flow on latents twice as large has twice the mean, scale and noise.
    """
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 2)))[0].astype(np.float32)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1))
    data = write_arrays(tmp_path / "data", images)
    runs = []
    for factor in (1.0, 2.0):
        params = {"mean": np.zeros(4, np.float32), "basis": basis, "std": np.asarray([0.5, 0.25]) / factor}
        params["std"] = params["std"].astype(np.float32)
        path = tmp_path / f"autoencoder-{factor:g}.npz"
        save_autoencoder(path, PatchPCA(2, 1, 2), params)
        flow = params_of(random_flow(LATENTS))
        out = flow["blocks"]["0"]["proj_out"]
        out["kernel"] = jnp.zeros_like(out["kernel"])
        out["bias"] = jnp.asarray([math.log(factor)] * 2 + [0.3 * factor] * 2, jnp.float32)
        config = DataConfig(
            source="npz", path=str(data), autoencoder=str(path), noise="gaussian", noise_std=0.2 * factor
        )
        runs.append(SweepRun(str(write_run(tmp_path / f"run-{factor:g}", LATENTS, config, {1: flow}))))
    config = SweepConfig("latents", tuple(runs), noise=("trained",), draws=2, batch_size=8)
    one, two = swept(config, tmp_path / "sweep").rows.values()
    assert one["unit"] == "bits/latent dim" and one["levels"] == 0 and one["dims"] == 8
    assert two["bits_per_dim"] == pytest.approx(one["bits_per_dim"] + 1.0, rel=1e-6)
    assert two["raw_bits_per_dim"] == pytest.approx(one["raw_bits_per_dim"], rel=1e-6)
    assert one["raw_bits_per_dim"] == pytest.approx(one["bits_per_dim"] - 1.5, rel=1e-6)  # log2 of 2 and of 4
    with pytest.raises(ValueError, match=r"noise 'uniform' needs pixels, and .* are latents; use 'trained'"):
        swept(SweepConfig("latents", tuple(runs), noise=("uniform",)), tmp_path / "other")


def test_scaling_factors_of_autoencoders():
    autoencoder = AutoencoderKL((32, 32))
    assert log_scale(autoencoder, {}, (8, 8, 4)) == pytest.approx(math.log(0.18215))
    assert log_scale(Tiled(autoencoder, 8, 2), {}, (8, 8, 4)) == pytest.approx(math.log(0.18215))
