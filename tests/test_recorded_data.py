"""What a run records of its data: levels, names of classes, and how text files are read."""

from __future__ import annotations

import dataclasses
import json

import pytest
from picture_files import write_photos

from starflow_jax.cli.options.arguments import class_choice
from starflow_jax.core.config import CaptionConfig, DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.core.config.build import to_json
from starflow_jax.core.request_errors import RequestError
from starflow_jax.sampling.image_requests import class_index
from starflow_jax.training.checkpoints.workdir import claim_workdir, first_difference, read_config, with_recorded
from starflow_jax.training.step.inputs import open_source, with_levels

FLOW = FlowConfig(channels=3, image_size=8, patch_size=4, width=16, num_blocks=1, layers_per_block=1, head_dim=16)


def experiment(path, **fields):
    data = DataConfig(source="images", path=str(path), **fields)
    return ExperimentConfig("any", FLOW, data, TrainConfig(steps=1, batch_size=2, lr=1e-3))


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path / "photos", {"10": [(8, 8)], "2": [(8, 8)], "cat": [(8, 8)]}, captions=False)
    return tmp_path / "photos"


def recorded(config):
    return with_levels(config, open_source(config.data, "train", flow=config.flow))


def write_old_run(workdir, config):
    """The folder of a run of version 0.2, whose configuration has none of the new fields."""
    values = json.loads(to_json(config))
    del values["data"]["captions"]["lines"], values["data"]["captions"]["key"], values["data"]["class_names"]
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(values, indent=2))


def test_names_of_classes_are_recorded_and_can_be_asked_for(photos):
    config = recorded(experiment(photos))
    assert config.data.class_names == ("10", "2", "cat")
    assert (config.data.levels, config.data.captions.lines) == (256, "one")
    assert [class_index(config, label) for label in ("cat", "10", 2, "all", "none")] == [2, 0, 2, "all", "none"]
    with pytest.raises(RequestError, match=r"got 'cats'; names of its classes are cat$"):
        class_index(config, "cats")
    with pytest.raises(RequestError, match="got 'cat'; it has recorded no names of classes"):
        class_index(experiment(photos), "cat")


def test_a_class_on_the_command_line():
    assert [class_choice(text) for text in ("7", "cat", "all", "none", "a b")] == [7, "cat", "all", "none", "a b"]


def test_a_run_continues_where_its_classes_have_names_now(tmp_path, photos):
    old = dataclasses.replace(experiment(photos), data=dataclasses.replace(experiment(photos).data, levels=256))
    write_old_run(tmp_path / "run", old)
    claim_workdir(tmp_path / "run", recorded(with_recorded(experiment(photos), tmp_path / "run")))
    assert read_config(tmp_path / "run").data.class_names == ("10", "2", "cat")


def test_runs_of_earlier_versions_keep_lines_as_alternatives(tmp_path, photos):
    write_old_run(tmp_path / "old", experiment(photos))
    assert read_config(tmp_path / "old").data.captions.lines == "alternatives"
    resumed = recorded(with_recorded(experiment(photos), tmp_path / "old"))
    assert resumed.data.captions.lines == "alternatives"
    claim_workdir(tmp_path / "old", resumed)
    assert read_config(tmp_path / "old").data.captions.lines == "alternatives"


def test_a_new_run_refuses_to_continue_with_the_other_rule(tmp_path, photos):
    claim_workdir(tmp_path / "run", recorded(experiment(photos)))
    assert with_recorded(experiment(photos), tmp_path / "run").data.captions.lines == "one"
    other = experiment(photos, captions=CaptionConfig(lines="alternatives"))
    assert with_recorded(other, tmp_path / "run").data.captions.lines == "alternatives"
    with pytest.raises(ValueError, match=r"captions\.lines is 'one' in the folder and 'alternatives'"):
        claim_workdir(tmp_path / "run", recorded(other))


def test_recorded_levels_of_another_source_are_not_taken(tmp_path, photos):
    claim_workdir(tmp_path / "run", recorded(experiment(photos)))
    digits = dataclasses.replace(experiment(photos), data=DataConfig())
    assert with_recorded(digits, tmp_path / "run") == digits
    assert with_recorded(digits, tmp_path / "none") == digits
    assert first_difference(experiment(photos), recorded(experiment(photos))) is None
