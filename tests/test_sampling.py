"""Sampling: noise, inverse, denoising and pixels in one compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import ExperimentConfig, build
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.digits import digits
from starflow_jax.flows.guidance import LinearGuidance
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.sampling import class_labels, sample, to_pixels
from starflow_jax.sampling import image_sampling as sampling
from starflow_jax.solvers import Jacobi, Sequential

FLOW = {
    "family": "tarflow",
    "channels": 1,
    "image_size": 8,
    "patch_size": 2,
    "width": 16,
    "num_blocks": 2,
    "layers_per_block": 1,
    "head_dim": 8,
    "num_classes": 10,
}
TRAIN = {"steps": 1, "batch_size": 8, "lr": 1e-3}


def experiment(data=None, **flow):
    data = {"label_drop": 0.1} if data is None else data
    return build(ExperimentConfig, {"name": "tiny", "flow": FLOW | flow, "data": data, "train": TRAIN})


def made(config, size=0.05):
    """Definition and parameters of a flow with random weights; of size 0 it is the identity."""
    definition, shapes = abstract(config.flow)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.float32(size * random.normal(size=a.shape)), shapes)
    if "prior_variance" in params:
        params["prior_variance"] = np.ones_like(params["prior_variance"])
    return definition, params


CONFIG = experiment()
KEY = jax.random.key(3)
LABELS = np.arange(10) % 3


@pytest.fixture(scope="module")
def flow():
    return made(CONFIG)


@pytest.fixture(scope="module")
def exact(flow):
    return sample(flow[1], CONFIG, KEY, LABELS)


def noise(count):
    keys = [jax.random.fold_in(KEY, place) for place in range(count)]
    return np.stack([jax.random.normal(key, (8, 8, 1)) for key in keys])


def test_forward_gives_the_noise_back(flow, exact):
    definition, params = flow
    z = jax.jit(lambda params, x: merge(definition, params).forward(x, jnp.asarray(LABELS)).z)(params, exact.x)
    np.testing.assert_allclose(z, noise(10), atol=2e-5)
    assert exact.report.converged and exact.report.iterations == (15, 15)


def test_a_new_flow_is_the_identity_and_temperature_scales_its_noise():
    drawn = sample(made(CONFIG, 0.0)[1], CONFIG, KEY, LABELS, temperature=0.5)
    np.testing.assert_allclose(drawn.x, 0.5 * noise(10), atol=1e-6)
    assert drawn.images.dtype == np.uint8 and drawn.images.shape == (10, 8, 8, 1)


def test_a_module_is_taken_like_its_parameters(flow, exact):
    np.testing.assert_array_equal(sample(merge(*flow), CONFIG, KEY, LABELS).x, exact.x)


def test_pictures_do_not_depend_on_the_batch_size(flow, exact):
    drawn = sample(flow[1], CONFIG, KEY, LABELS, batch_size=4)
    assert (drawn.report.batches, drawn.report.batch_size) == (3, 4)
    assert len(drawn.x) == 10 and drawn.report.evaluations == 3 * 2 * 15
    np.testing.assert_allclose(drawn.x, exact.x, atol=1e-5)


def test_nothing_recompiles_for_other_keys_labels_weights_or_temperatures(flow, monkeypatch):
    traced = []
    inverse = sampling.inverse
    monkeypatch.setattr(sampling, "inverse", lambda *args, **options: traced.append(1) or inverse(*args, **options))
    first = sample(flow[1], CONFIG, KEY, LABELS, guidance=1.0, batch_size=3).report
    assert traced == [1]
    again = sample(flow[1], CONFIG, jax.random.key(9), LABELS[::-1], guidance=2.5, temperature=0.7, batch_size=3).report
    assert traced == [1] and again.compile_seconds < 0.1 * first.compile_seconds


def test_a_chunk_that_did_not_converge_is_reported(flow):
    drawn = sample(flow[1], CONFIG, KEY, LABELS, solver=Jacobi(block=8, tolerance=0.0, max_iterations=2))
    assert not drawn.report.converged
    assert {(c.block, c.start, c.length, c.iterations) for c in drawn.report.unconverged} == {
        # Without a start token the first token is its own noise, which leaves 15 to solve.
        (block, start, length, 2)
        for block in (0, 1)
        for start, length in ((1, 8), (9, 7))
    }
    assert all(chunk.residual > 0 for chunk in drawn.report.unconverged)


def test_as_many_iterations_as_tokens_are_exact(flow, exact):
    drawn = sample(flow[1], CONFIG, KEY, LABELS, solver=Jacobi(tolerance=0.0, max_iterations=16))
    assert drawn.report.converged
    np.testing.assert_allclose(drawn.x, exact.x, atol=1e-5)


def test_guidance_zero_is_none_and_more_moves_the_picture(flow, exact):
    np.testing.assert_array_equal(sample(flow[1], CONFIG, KEY, LABELS, guidance=0.0).x, exact.x)
    barely = sample(flow[1], CONFIG, KEY, LABELS, guidance=1e-6).x
    np.testing.assert_allclose(barely, exact.x, atol=1e-4)
    assert np.abs(sample(flow[1], CONFIG, KEY, LABELS, guidance=3.0).x - exact.x).max() > 1e-2


@pytest.mark.slow
def test_annealed_guidance_is_that_of_the_flow(flow, exact):
    """The first token of a block is its noise, and the second has a fifteenth of the weight."""
    drawn = sample(flow[1], CONFIG, KEY, LABELS, guidance=3.0, annealed_guidance=True).x
    guidance = LinearGuidance(3.0, annealed=True)

    @jax.jit
    def noise_of(params, x):
        return merge(flow[0], params).forward(x, jnp.asarray(LABELS), guidance=guidance).z

    back = noise_of(flow[1], drawn)
    np.testing.assert_allclose(back, noise(10), atol=1e-4)
    with pytest.raises(ValueError, match="annealed_guidance needs a model of family 'tarflow', got 'starflow'"):
        text = experiment(
            family="starflow", num_classes=0, text_dim=10, text_length=1, rope=True, head_dim=20, width=40
        )
        sample({}, text, KEY, LABELS, annealed_guidance=True)


def test_an_unconditional_flow_is_guided_by_attention_temperature():
    config = experiment({}, num_classes=0)
    params = made(config, 0.12)[1]
    labels = class_labels(config, 2)
    assert (labels == -1).all()
    barely, more = (
        sample(params, config, KEY, labels, guidance=weight, attention_temperature=0.3).x for weight in (1e-6, 2.0)
    )
    assert np.abs(more - barely).max() > 1e-3


def test_text_conditioned_flow_with_one_hot_labels():
    config = experiment(
        family="starflow", num_classes=0, text_dim=10, text_length=1, sos=True, rope=True, head_dim=20, width=40
    )
    drawn = sample(made(config)[1], config, KEY, [3, -1], guidance=1.0, attention_temperature=0.9)
    assert np.isfinite(drawn.x).all()


def test_values_that_are_not_finite_are_counted_and_still_drawn(flow):
    broken = jax.tree.map(lambda a: a * jnp.nan, flow[1])
    drawn = sample(broken, CONFIG, KEY, LABELS)
    assert drawn.report.non_finite == 10 and (drawn.images == 0).all()


def test_score_denoising_of_a_standard_normal():
    config = experiment({"noise": "gaussian", "noise_std": 0.3}, num_blocks=1)
    drawn = sample(made(config, 0.0)[1], config, KEY, [0, 1], denoise="score")
    np.testing.assert_allclose(drawn.x, (1 - 0.3**2) * noise(2), atol=1e-5)  # its score is -x


def test_pixels_are_the_levels_of_the_data():
    source = digits("test")
    x = dequantise(source.images, np.full(source.images.shape, 0.7, np.float32), source.levels)
    expected = np.rint(source.images * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(to_pixels(x, CONFIG.data), expected)
    gaussian = dataclasses.replace(CONFIG.data, noise="gaussian", noise_std=0.1)
    np.testing.assert_array_equal(
        to_pixels(np.float32([-1, 0.2, 1, 3]).reshape(1, 2, 2, 1), gaussian).ravel(), [0, 153, 255, 255]
    )


@pytest.mark.parametrize(
    ("labels", "options", "named"),
    [
        ([], {}, "labels"),
        ([10], {}, "class must be 0 to 9, got 10"),
        ([-2], {}, "class"),
        ([10**11], {}, "class must be 0 to 9, got 100000000000"),
        ([1], {"guidance": -1.0}, "guidance"),
        ([1], {"guidance": float("nan")}, "guidance"),
        ([-1], {"guidance": 1.0}, "attention_temperature"),
        ([1], {"temperature": float("inf")}, "temperature"),
        ([1], {"attention_temperature": 0.0}, "attention_temperature"),
        ([1], {"denoise": "score"}, "denoise"),
        ([1], {"denoise": "median"}, "denoise"),
        ([1], {"batch_size": 0}, "batch_size"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_any_work(labels, options, named, shapes_unchecked):
    with pytest.raises(ValueError, match=named):
        sample({}, CONFIG, KEY, labels, **options)


def test_a_class_of_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="class must be none"):
        sample({}, experiment({}, num_classes=0), KEY, [0], solver=Sequential())
