"""Arguments of the PyTorch originals: every one that is missing has its default or a sentence, and YAML is plain."""

import json
from pathlib import Path

import pytest

from starflow_jax.core.config import load_config
from starflow_jax.porting import flow_config
from starflow_jax.porting.released_yaml import apply_released, read_released

GOLDENS = Path(__file__).parent / "goldens"
RECORDED = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))


def arguments(name):
    return json.loads((GOLDENS / name / "config.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_every_missing_argument_has_its_default_or_a_sentence(name):
    given = arguments(name)
    for missing in given:
        rest = {key: value for key, value in given.items() if key != missing}
        try:
            assert flow_config(rest) == flow_config({**rest, missing: None})
        except ValueError as error:
            assert len(str(error)) < 300


def test_every_missing_argument_of_a_language_model_has_its_default_or_a_sentence():
    given = arguments("starflow_gemma_lm")
    inner = given["_pretrained_lm_kwargs"]
    for missing in inner:
        rest = {key: value for key, value in inner.items() if key != missing}
        if missing == "channels":
            with pytest.raises(ValueError, match="_pretrained_lm_kwargs: channels is missing"):
                flow_config({**given, "_pretrained_lm_kwargs": rest})
        else:
            flow_config({**given, "_pretrained_lm_kwargs": rest})
    without = {key: value for key, value in inner.items() if key != "expansion"}
    assert flow_config({**given, "_pretrained_lm_kwargs": without}).language_model.expansion == 4
    without = {key: value for key, value in inner.items() if key != "num_kv_heads"}
    assert flow_config({**given, "_pretrained_lm_kwargs": without}).language_model.kv_heads == inner["num_heads"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_pretrained_lm_kwargs": None}, "_pretrained_lm_kwargs must be a mapping"),
        ({"_pretrained_lm_kwargs": {"channels": 40, "magic": 1}}, "unknown arguments in _pretrained_lm_kwargs: magic"),
        ({"_pretrained_lm_kwargs": {"channels": 40, "num_layers": 2}}, "_pretrained_lm_kwargs: heads must be"),
        ({"norm_type": "batch_norm"}, "norm_type must be one of 'layer_norm', 'rms_norm'"),
        ({"use_softplus": "yes"}, "use_softplus must be 0 or 1, got 'yes'"),
        ({"layers_per_block": {}}, "layers_per_block must be integers"),
        ({"layers_per_block": [1.5, 2]}, "layers_per_block must be integers"),
        ({"img_size": [1, 2, 3]}, "img_size must be a number"),
        ({"img_size": {"rows": 3}}, "img_size must be a number"),
        ({"in_channels": None}, "in_channels is missing"),
        ({"head_dim": [3]}, "head_dim must be a number"),
    ],
)
def test_values_that_are_none_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        flow_config(arguments("starflow_gemma_lm") | changes)


LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGHS + "vae: *l\n", r"repeats a part by its anchor, \*a"),
        ("vae: &a sd\ncfg: *a\n", "repeats a part by its anchor"),
        (f"lr: {'9' * 4000}\n", "the integer 9999.* has more than 64 bits"),
        (f"lr: {'9' * 40}\n", "the integer 9999.* has more than 64 bits"),
        (f"lr: 0x{'f' * 20000}\n", "the integer 0xff.* has more than 64 bits"),
        (f"lr: {'1:' * 5000}1\n", "the integer 1:1:.* has more than 64 bits"),
        ("lr: .inf\n", "finite numbers"),
        ("layers_per_block: [.nan]\n", "finite numbers"),
        ("lr: 2020-01-01\n", "a value of type date"),
        ("lr: !!binary aGVsbG8=\n", "a value of type bytes"),
        ("vae: !!set {a, b}\n", "a value of type set"),
        ("? [a, b]\n: 1\n", "not YAML of plain values"),
        ("a: " + "[" * 3000, "not YAML of plain values"),
        ("cfg: !!int x\n", "not YAML of plain values"),
        ("cfg: !!timestamp x\n", "not YAML of plain values"),
        ("x: " + "y" * 2**21, "at most"),
        ("in_channels: [1]\nimg_size: 256\n", "in_channels must be a number"),
        (f"vid_size: '{'9' * 3000}:16'\n", "vid_size must be FRAMES:RATE"),
    ],
)
def test_yaml_that_would_grow_or_is_not_plain_is_refused_in_a_sentence(tmp_path, text, sentence):
    config = load_config(str(Path(__file__).parents[1] / "experiments" / "starflow_3b_t2i.py"))
    (path := tmp_path / "released.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        apply_released(config, read_released(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
