"""Building configurations: every mistake is answered by one sentence that names the field."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from starflow_jax.core.config import (
    CaptionConfig,
    ComponentConfig,
    DataConfig,
    ExperimentConfig,
    apply_overrides,
    build,
    from_json,
    load_config,
    to_json,
)

VALUES = {
    "name": "tiny",
    "flow": {
        "family": "tarflow",
        "channels": 1,
        "image_size": 8,
        "patch_size": 4,
        "width": 16,
        "num_blocks": 2,
        "layers_per_block": [1, 1],
        "head_dim": 16,
        "num_classes": 10,
    },
    "data": {"label_drop": 0.1},
    "train": {"steps": 8, "batch_size": 4, "lr": 1, "betas": [0.9, 0.95]},
}

FILE = '''"""A tiny experiment."""
from ml_collections import ConfigDict

def get_config(variant="full"):
    config = ConfigDict(VALUES)
    config.name = variant
    return config
'''


@pytest.fixture
def experiment_file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(FILE.replace("VALUES", repr(VALUES)))
    return path


def changed(**groups):
    return {name: {**VALUES[name], **values} for name, values in groups.items()}


def test_builds_nested_dataclasses_and_converts_only_lists_and_integers():
    config = build(ExperimentConfig, ConfigDict(VALUES))
    assert config.flow.layers_per_block == (1, 1)
    assert config.train.lr == 1.0 and isinstance(config.train.lr, float)
    assert config.train.betas == (0.9, 0.95)
    assert config.flow.denoiser is None
    assert hash(config) == hash(build(ExperimentConfig, VALUES))


def test_json_round_trip():
    config = build(ExperimentConfig, VALUES)
    assert from_json(to_json(config)) == config
    with_denoiser = changed(data={"noise": "gaussian", "noise_std": 0.3}) | {
        "flow": {
            "channels": 1,
            "image_size": [8, 8],
            "width": 48,
            "num_blocks": 1,
            "layers_per_block": 1,
            "head_dim": 24,
            "rope": True,
            "text_dim": 10,
            "text_length": 1,
            "denoiser": {"layers": 1},
        }
    }
    config = build(ExperimentConfig, VALUES | with_denoiser)
    assert from_json(to_json(config)) == config
    with pytest.raises(ValueError, match="a configuration must be JSON"):
        from_json("{")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sede": 1}, "config has no field 'sede'; did you mean seed?"),
        (changed(train={"stesp": 1}), "config.train has no field 'stesp'; did you mean steps"),
        (changed(train={"zzz": 1}), "config.train has no field 'zzz'; it has steps, batch_size"),
        (changed(train={"steps": 1.5}), "config.train.steps must be an integer, got 1.5"),
        (changed(train={"steps": True}), "config.train.steps must be an integer, got True"),
        (changed(train={"lr": "fast"}), "config.train.lr must be a number, got 'fast'"),
        (changed(train={"noise_weight": 1}), "config.train.noise_weight must be True or False, got 1"),
        (changed(train={"betas": 0.9}), "train.betas must be a list of 2: a number, a number, got 0.9"),
        (changed(train={"betas": [0.9]}), r"config.train.betas must have 2 entries, got 1: \[0.9\]"),
        (changed(train={"schedule": "tarflwo"}), "got 'tarflwo'; did you mean tarflow"),
        (changed(train={"steps": 0}), "config.train: steps must be an integer >= 1, got 0"),
        (changed(train={"steps": 10**20}), "config.train: steps must be an integer <= 4294967295, got 1000"),
        (changed(train={"batch_size": 2**20}), "config.train: batch_size must be below 1048576, got 1048576"),
        (changed(flow={"layers_per_block": "all"}), "flow.layers_per_block must be an integer or a list"),
        (changed(flow={"head_dim": 5}), "config.flow: head_dim must divide width"),
        (changed(flow={"denoiser": 3}), "flow.denoiser must be a mapping of the fields of DenoiserConfig"),
        (changed(data={"noise_std": 0.1}), "config.data: noise_std must be above 0 for noise 'gaussian'"),
        (changed(data={"source": "npz"}), "config.data: path requires source 'idx', 'images', 'latents', 'npz'"),
        (changed(flow={"num_classes": 0}), "config: data.label_drop needs flow.num_classes"),
        ({"sample": {"denoise": "score"}}, "config: sample.denoise 'score' needs data.noise 'gaussian'"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build(ExperimentConfig, VALUES | values)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named():
    values = {name: value for name, value in VALUES.items() if name != "train"}
    with pytest.raises(ValueError, match=r"config.train is missing, and has no default"):
        build(ExperimentConfig, values)


def test_overrides_are_read_as_the_declared_type():
    values = apply_overrides(
        VALUES,
        [
            "--config.train.lr=1e-4",
            "--train.skip_after=none",
            "data.noise=gaussian",
            "data.noise_std=0.1",
            "train.noise_weight=true",
            "flow.layers_per_block=(2, 1)",
            "name=7",
            "seed=3",
            "sample.num=5",
        ],
    )
    config = build(ExperimentConfig, values)
    assert config.train.lr == 1e-4 and config.train.skip_after is None and config.train.noise_weight
    assert config.data.noise == "gaussian" and config.flow.layers_per_block == (2, 1)
    assert config.name == "7" and config.seed == 3 and config.sample.num == 5
    assert VALUES["train"]["lr"] == 1  # a copy was changed


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.train.lrr=1", "config.train has no field 'lrr'; did you mean lr"),
        ("--config.trian.lr=1", "config has no field 'trian'; did you mean train"),
        ("--config.train.lr.x=1", "config.train.lr has no fields"),
        ("--config.train.lr", "an override must be --config.NAME=VALUE"),
        ("--config.train.lr=fast", "config.train.lr must be a number, got 'fast'"),
        ("--config.train.steps=1e3", "config.train.steps must be an integer, got 1000.0"),
        (f"--config.train.lr=1{'0' * 400}", "config.train.lr must be a number that a float can hold, got 1000"),
        ("--config.train.steps=none", "config.train.steps must be an integer, got None"),
    ],
)
def test_bad_overrides_are_answered_by_one_sentence(override, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        apply_overrides(VALUES, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{[]:1}", "[" * 5000, "-" * 100000 + "1"])
def test_what_python_cannot_read_is_text(text):
    assert apply_overrides(VALUES, [f"name={text}"])["name"] == text


def test_an_override_inside_what_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match=r"config\.flow must be a mapping of the fields of FlowConfig, got 5"):
        apply_overrides(VALUES | {"flow": 5}, ["flow.width=3"])
    nested = apply_overrides(VALUES | {"flow": ConfigDict(VALUES["flow"])}, ["flow.width=32"])
    assert nested["flow"]["width"] == 32


def test_loads_an_experiment_file_with_variant_and_overrides(experiment_file):
    config = load_config(str(experiment_file), ["--config.train.steps=9"])
    assert (config.name, config.train.steps) == ("full", 9)
    assert load_config(f"{experiment_file}:tiny").name == "tiny"


def test_bad_experiment_files_are_answered_by_one_sentence(tmp_path):
    def written(text):
        path = tmp_path / "bad.py"
        path.write_text(text)
        return str(path)

    with pytest.raises(ValueError, match=r"config file nowhere\.py does not exist"):
        load_config("nowhere.py:tiny")
    with pytest.raises(ValueError, match="failed with ZeroDivisionError"):
        load_config(written("1 / 0"))
    with pytest.raises(ValueError, match=r"must define get_config\(\)"):
        load_config(written("x = 1"))
    with pytest.raises(ValueError, match="has no variants, got 'tiny'"):
        load_config(written("def get_config(): return {}") + ":tiny")
    with pytest.raises(ValueError, match="must return a ConfigDict, got int"):
        load_config(written("def get_config(): return 1"))
    with pytest.raises(ValueError, match="failed with SystemExit: 3"):
        load_config(written("import sys; sys.exit(3)"))
    with pytest.raises(ValueError, match="failed with SystemExit"):
        load_config(written("import sys\ndef get_config(): sys.exit()"))


def test_configurations_are_frozen():
    config = build(ExperimentConfig, VALUES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_weights_must_be_weights():
    with pytest.raises(ValueError, match="kinds must have weights that sum to more than 0"):
        CaptionConfig(kinds=(("a", 0.0),))
    with pytest.raises(ValueError, match="kinds weight of 'a' must be a finite number >= 0, got -1"):
        CaptionConfig(kinds=(("a", -1.0),))
    with pytest.raises(ValueError, match="mixture must have weights that sum to more than 0"):
        DataConfig(source="mixture", mixture=(ComponentConfig(weight=0.0),))
    with pytest.raises(ValueError, match="frames must be the largest number of frames in the mixture, 0, got 3"):
        DataConfig(source="mixture", frames=3, mixture=(ComponentConfig(),))
