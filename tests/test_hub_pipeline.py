"""The pipeline with the names of diffusers: which arguments it takes, and why it refuses the others."""

import numpy as np
import pytest
from random_flows import CLASSES, random_flow
from sweep_runs import params_of, write_run
from test_hub import REPO, hub, published  # noqa: F401 (fixtures)

import starflow_jax as sf
from starflow_jax.core.config import DataConfig
from starflow_jax.hub.pipeline_arguments import seed_of


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    data = DataConfig(source="npz", path="photos", levels=16, label_drop=0.1)
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", CLASSES, data, {4: params_of(random_flow(CLASSES, 4))})


@pytest.fixture(scope="module")
def pipe(workdir):
    return sf.StarFlowPipeline.from_pretrained(workdir)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            {"num_inference_steps": 50},
            "num_inference_steps has no meaning for this model: a flow is inverted",
        ),
        ({"negative_prompt": "blurry"}, "negative_prompt has no meaning for this model"),
        ({"guidance_scale": 0.5}, "guidance_scale must be"),
        ({"height": 4}, "height and width must be given together"),
        ({"height": 512, "width": 512}, "height and width must be 4 and 4 for this model, got 512 and 512"),
        ({"num_frames": 8}, "num_frames is of videos, and this is a model of images"),
        ({"num_videos_per_prompt": 2}, "num_videos_per_prompt is of the other kind: this is a model of images"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"generator": 1, "seed": 2}, "give either generator or seed, got both"),
        ({"generator": "x"}, "generator must be an integer, a JAX key"),
        ({"output_type": "latent"}, "output_type must be one of"),
    ],
)
def test_a_pipeline_says_why_it_refuses_an_argument(pipe, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipe(**arguments)


def test_a_pipeline_knows_its_arguments(pipe):
    with pytest.raises(TypeError, match="did you mean guidance_scale"):
        pipe(guidance_scal=2.0)
    with pytest.raises(ValueError, match="named hf://org/name"):
        sf.StarFlowPipeline.from_pretrained("org/name")
    with pytest.raises(ValueError, match="revision goes with hf://ORG/NAME"):
        sf.StarFlowPipeline.from_pretrained("runs/x", revision="main")


def test_the_seed_of_a_generator_is_a_function_of_it():
    import jax

    assert seed_of(None, None) == 0 and seed_of(7, None) == seed_of(None, 7) == 7
    assert seed_of(np.random.default_rng(1), None) == seed_of(np.random.default_rng(1), None)
    keys = {seed_of(jax.random.key(number), None) for number in (1, 2)}
    assert len(keys) == 2 and seed_of(jax.random.key(1), None) in keys


@pytest.mark.slow
def test_a_pipeline_draws_what_sample_draws(published, workdir):  # noqa: F811 (a fixture)
    pipe = sf.StarFlowPipeline.from_pretrained(workdir)
    there = sf.StarFlowPipeline.from_pretrained(f"hf://{REPO}", revision=published.revision)
    expected = sf.sample(pipe.run, num=2, label=1, guidance=0.5, seed=9)
    drawn = there(class_label=1, num_images_per_prompt=2, guidance_scale=1.5, generator=9)
    assert drawn.frames is None and [np.asarray(one).tolist() for one in drawn.images] == [
        one[..., 0].tolist() for one in expected.images
    ]
    (arrays,) = there(
        class_label=1, num_images_per_prompt=2, guidance_scale=1.5, seed=9, output_type="np", return_dict=False
    )
    np.testing.assert_array_equal(arrays, expected.images.astype(np.float32) / 255.0)
