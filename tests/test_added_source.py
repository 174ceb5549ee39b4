"""A data source of a user's own file: it trains, and its number of pixel levels is used wherever pixels are read."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.evaluation.likelihood.video_scores import file_pixels, score_clips, source_clips
from starflow_jax.sampling import sample, to_pixels
from starflow_jax.training import load_run, open_source
from starflow_jax.training.checkpoints.workdir import claim_workdir, read_config
from starflow_jax.training.step.inputs import with_levels

EXPERIMENT = """
import numpy as np
from ml_collections import config_dict

from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.base import ArraySource


@SOURCES.register("stripes", options=("period",))
def open_stripes(config, request):
    period = dict(config.options).get("period", 2)
    rows = np.arange(64)[:, None, None, None] + np.arange(4)[:, None, None]
    images = np.broadcast_to(rows // period % 2, (64, 4, 4, 1)).astype(np.uint8)
    return ArraySource(f"stripes-{request.split}", images, np.zeros(64, np.int32), levels=2, num_classes=1)


def get_config():
    return config_dict.ConfigDict(
        dict(
            name="stripes",
            flow=dict(channels=1, image_size=4, patch_size=2, width=16, head_dim=16, num_blocks=2, layers_per_block=1),
            data=dict(source="stripes", options=(("period", 3),)),
            train=dict(steps=2, batch_size=8, lr=1e-3),
            evaluate=dict(draws=1),
        )
    )
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stripes")
    (folder / "stripes.py").write_text(EXPERIMENT)
    arguments = ["train", "--config", str(folder / "stripes.py"), "--workdir", str(folder / "run"), "--quiet"]
    assert main(arguments) == 0
    yield folder / "run"
    SOURCES._entries.pop("stripes", None)


@pytest.mark.slow
def test_samples_have_two_levels(run):
    config, _, params, step = load_run(run)
    assert step == 2 and config.data.levels == config.data.pixel_levels == 2
    samples = sample(params, config, jax.random.key(0), np.full(8, -1))
    assert set(np.unique(samples.images)) == {0, 255}


@pytest.mark.slow
def test_scores_are_in_units_of_two_levels(run, capsys):
    config, _, params, _ = load_run(run)
    source = open_source(config.data, "test", flow=config.flow)
    assert source[0]["image"].max() == 1 and dict(config.data.options) == {"period": 3}
    key = jax.random.key(1)
    (score,) = score_clips(params, config, source_clips(source, config, 1), key, draws=1)
    # At 256 levels the unit of the density is 1/128 of that at two: log2(128) = 7 bits more.
    bytes_config = dataclasses.replace(config, data=dataclasses.replace(config.data, levels=256))
    (fine,) = score_clips(params, bytes_config, source_clips(source, config, 1), key, draws=1)
    assert fine.bits_per_dim - score.bits_per_dim == pytest.approx(7.0, abs=1e-5)
    pixels, levels = file_pixels(np.uint8([0, 127, 128, 255]), config.data)
    assert levels == 2 and pixels.tolist() == [0, 0, 1, 1]
    assert main(["evaluate", "--workdir", str(run)]) == 0
    assert "64 images of stripes-test" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_read_where_its_source_is_not_registered(run):
    entry = SOURCES._entries.pop("stripes")
    try:
        config, *_ = load_run(run)
        assert config.data.pixel_levels == 2
        with pytest.raises(ValueError, match=r"data source must be one of .*, got 'stripes'"):
            open_source(config.data, "train", flow=config.flow)
        with pytest.raises(ValueError, match=r"source must be one of .*, got 'stripes'"):
            dataclasses.replace(config.data, levels=None)
    finally:
        SOURCES._entries["stripes"] = entry


def test_options_of_another_source_are_refused():
    with pytest.raises(ValueError, match=r"options of source 'digits' must be among \[\], got 'period'"):
        DataConfig(options=(("period", 3),))


@pytest.mark.parametrize(("source", "levels"), [("digits", 17), ("npz", 256)])
def test_runs_of_before_have_the_levels_of_their_source(source, levels):
    data = DataConfig(source=source, path="gone" if source == "npz" else None)
    assert data.levels is None and data.pixel_levels == levels
    shades = np.unique(to_pixels(np.linspace(-1, 1, 1000, dtype=np.float32).reshape(1, 20, 50, 1), data))
    assert len(shades) == levels


def test_a_run_of_before_records_its_levels_when_it_goes_on(tmp_path):
    config = ExperimentConfig(
        name="d",
        flow=FlowConfig(channels=1, image_size=8, patch_size=2, width=8, head_dim=8, num_blocks=1, layers_per_block=1),
        data=DataConfig(),
        train=TrainConfig(steps=1, batch_size=8, lr=1e-3),
    )
    source = open_source(config.data, "train")
    claim_workdir(tmp_path, config)
    claim_workdir(tmp_path, with_levels(config, source))
    assert read_config(tmp_path).data.levels == 17
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, levels=3))
    with pytest.raises(
        ValueError,
        match=r"workdir .* contains a run with another configuration: config.data.levels is 17 in the folder",
    ):
        claim_workdir(tmp_path, wrong)
    with pytest.raises(ValueError, match=r"data.levels must be None or the 17 levels of digits-train, got 3"):
        with_levels(wrong, source)


def test_the_traits_of_a_source_decide_and_not_its_name(temporary_registrations):
    SOURCES.register("stored", frames="either", latents=True)(lambda config, request: None)
    SOURCES.register("digits16", levels=17, feature_network="digits")(lambda config, request: None)
    with pytest.raises(ValueError, match="noise must be 'gaussian' for latents, got 'uniform'"):
        DataConfig(source="stored")
    stored = DataConfig(source="stored", noise="gaussian", noise_std=0.1)
    assert stored.has_latents and stored.on_latents and not DataConfig().has_latents
    assert DataConfig(source="digits16").traits.feature_network == DataConfig().traits.feature_network == "digits"
