"""The fixed map of pixels in front of a flow: a bijection with an exact Jacobian, in likelihoods and in samples."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig, to_json
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.likelihood.frame_likelihood import token_log_probs
from starflow_jax.flows import objective, standard_normal_log_prob
from starflow_jax.flows.pixel_map import map_pixels, token_basis, unmap_pixels
from starflow_jax.solvers import inverse
from starflow_jax.training.checkpoints.port_requests import ExportRequest, export_run
from starflow_jax.training.step.inputs import check_source

MAPS = {
    "black": PixelMapConfig(),
    "black, dark and white": PixelMapConfig(normal_cells=((0, 20.0), (1, 0.2), (255, 3.0)), kept=0.9),
    "few levels": PixelMapConfig(levels=17, normal_cells=((3, 1.0),)),
    "logit": PixelMapConfig(kind="logit", alpha=1e-3),
}
MAPPED = dataclasses.replace(
    CLASSES, num_blocks=1, pixel_map=PixelMapConfig(levels=17, normal_cells=((0, 2.0), (16, 1.0)), basis="cosine")
)


@pytest.mark.parametrize("name", MAPS)
def test_the_map_is_a_bijection_with_the_jacobian_of_autodiff(name):
    config = MAPS[name]
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-1.0, 1.0, 4001)).astype(np.float32)
    if config.kind != "logit":  # which maps the open interval alone
        x = np.concatenate([[-1.5, -1.0], x, [1.0, 1.25]]).astype(np.float32)

    @jax.jit
    def all_of(x):
        y, log_slope = map_pixels(config, x)
        return y, log_slope, jax.vmap(jax.grad(lambda one: map_pixels(config, one)[0]))(x), unmap_pixels(config, y)

    y, log_slope, slope, back = map(np.asarray, all_of(x))
    assert np.all(np.diff(y) >= 0) and np.all(slope > 0)
    np.testing.assert_allclose(back, x, atol=2e-6)
    # At a cell's edge, where the slope jumps, rounding decides the side for both alike, up to the clip's half gradient.
    close = np.abs(np.log(slope) - log_slope) < 2e-4
    assert np.count_nonzero(~close) <= 2


def test_a_level_that_is_certain_costs_no_more_than_the_tails():
    """Black costs -log2(kept) under the normal density of its cell, and 0.2546 bits without a map."""
    noise = (np.arange(20_000) + 0.5) / 20_000
    for kept in (0.9, 0.99):
        config = PixelMapConfig(normal_cells=((0, 20.0),), kept=kept)
        mapped = map_pixels(config, jnp.float32(dequantise(noise * 0, noise, 256)))
        y, log_slope = (np.asarray(part, np.float64) for part in mapped)
        last = map_pixels(config, jnp.float32([-1.0, 2.0 / 256 - 1.0]))[0]
        mean, width = float(last.mean()), float(np.ptp(last))
        deviation = width / (2.0 * float(-jax.scipy.special.ndtri((1.0 - kept) / 2.0)))
        log_p = -0.5 * ((y - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2.0 * math.pi)) + log_slope
        bits = -(log_p.mean() - math.log(256 / 2.0)) / math.log(2.0)
        np.testing.assert_allclose(bits, -math.log2(kept), atol=2e-4)


@pytest.mark.parametrize("family", ["tarflow", "starflow"])
def test_the_basis_is_orthogonal_and_its_first_vector_is_the_mean(family):
    matrix = token_basis(PixelMapConfig(basis="cosine"), 2, 4, family)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(32), atol=1e-6)
    first = matrix[:, 0]
    np.testing.assert_allclose(first[first != 0], np.full(16, 0.25), rtol=1e-6)
    assert token_basis(PixelMapConfig(), 2, 4, family) is None


def test_the_likelihood_of_a_flow_includes_the_map_and_samples_its_inverse():
    flow, labels = random_flow(MAPPED), jnp.arange(2) % 3
    x = jnp.tanh(normal((2, 4, 4, 1)))

    @jax.jit
    def all_of(x):
        output = flow.forward(x, labels)
        one = lambda v: flow.forward(v.reshape(1, 4, 4, 1), labels[:1]).z.ravel()  # noqa: E731
        exact = jnp.linalg.slogdet(jax.jacobian(one)(x[0].ravel()))[1]
        back = inverse(flow, output.z, labels)
        shares = token_log_probs(flow, x, labels)
        return output, exact, flow.log_prob(x, labels), objective(output).loss, back.x, shares

    output, exact, log_prob, loss, back, shares = all_of(x)
    np.testing.assert_allclose(jnp.sum(shares, axis=(1, 2)), log_prob, rtol=1e-5)
    np.testing.assert_allclose(output.logdet[0], exact, rtol=1e-4)
    np.testing.assert_allclose(log_prob, standard_normal_log_prob(output.z) + output.logdet, rtol=1e-5)
    np.testing.assert_allclose(loss, -jnp.mean(log_prob) / 16 - 0.5 * math.log(2.0 * math.pi), rtol=1e-4)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_hashes_of_flows_without_a_map_are_as_before():
    assert "pixel_map" not in CLASSES.identity()
    assert MAPPED.identity()["pixel_map"]["levels"] == 17


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"levels": 1}, "pixel_map.levels must be an integer >= 2, got 1"),
        ({"kept": 1.0}, "pixel_map.kept must be at most 0.9999, got 1.0"),
        ({"kept": math.nan}, "pixel_map.kept must be a finite number"),
        ({"alpha": 0.5}, "pixel_map.alpha must be below 0.5, got 0.5"),
        ({"normal_cells": ()}, "must name at least one level for kind 'normal-cells', got none"),
        ({"normal_cells": ((256, 1.0),)}, "level must be an integer <= 255, got 256"),
        ({"normal_cells": ((0, 0.0),)}, "width must be a finite number >= 0.001, got 0.0"),
        ({"normal_cells": ((3, 1.0), (3, 1.0))}, "in increasing order, got 3 after 3"),
        ({"normal_cells": (0,)}, r"normal_cells must be pairs \(level, width\), got 0"),
        ({"kind": "cdf"}, "kind must be one of 'normal-cells', 'logit', 'affine', got 'cdf'"),
    ],
)
def test_values_out_of_range_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        PixelMapConfig(**change)


def test_flows_with_a_map_are_no_flows_of_the_originals(tmp_path):
    data, train = DataConfig(source="digits", noise="uniform"), TrainConfig(steps=1, batch_size=1, lr=1e-3)
    config = ExperimentConfig(name="mapped", flow=MAPPED, data=data, train=train)
    (tmp_path / "config.json").write_text(to_json(config))
    with pytest.raises(ValueError, match=r"flow.pixel_map must be None for files of the PyTorch originals"):
        export_run(ExportRequest(tmp_path, to_torch=tmp_path / "flow.safetensors"))
    assert not (tmp_path / "flow.safetensors").exists()


def test_a_map_needs_dequantised_still_images_of_its_levels():
    train = TrainConfig(steps=1, batch_size=1, lr=1e-3)
    with pytest.raises(ValueError, match=r"needs still images with data.noise 'uniform', got noise='gaus"):
        ExperimentConfig("mapped", MAPPED, DataConfig(noise="gaussian", noise_std=0.1), train)
    with pytest.raises(ValueError, match="pixel_map is only supported by flows of still images"):
        dataclasses.replace(VIDEO, pixel_map=PixelMapConfig())
    source = ArraySource("pictures", np.full((1, 4, 4, 1), 200, np.uint8), np.zeros(1, np.int32), 256, 1)
    with pytest.raises(ValueError, match=r"flow\.pixel_map\.levels must be the 256 levels of pictures, got 17"):
        check_source(source, MAPPED)
    assert dataclasses.replace(IMAGE, pixel_map=PixelMapConfig()).pixel_map is not None
    assert FlowConfig(channels=1, image_size=4, width=8, num_blocks=1, layers_per_block=1, head_dim=8).pixel_map is None
