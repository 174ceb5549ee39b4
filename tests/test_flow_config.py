"""A configuration checks itself: every contradiction is one sentence that names the field and the value."""

import dataclasses

import pytest
from random_flows import CLASSES, IMAGE, VIDEO

from starflow_jax.core.config import DenoiserConfig, TransformerConfig

WRONG = [
    (IMAGE, {"width": 50}, "head_dim must divide width unless heads is given, got head_dim=20 and width=50"),
    (IMAGE, {"heads": 4, "kv_heads": 3}, "kv_heads must divide heads, got kv_heads=3 and heads=4"),
    (IMAGE, {"head_dim": 5}, "head_dim must be even for rotary positions, got 5"),
    (IMAGE, {"head_dim": 8}, "head_dim must be 4k >= 20 for three rotary axes"),
    (IMAGE, {"width": 0}, "width must be an integer >= 1, got 0"),
    (IMAGE, {"width": True}, "width must be an integer >= 1, got True"),
    (IMAGE, {"layers_per_block": (1, 2, 3)}, "layers_per_block must have 1 or num_blocks=2 entries, got 3"),
    (IMAGE, {"layers_per_block": (1, -1)}, "layers_per_block must be an integer >= 0, got -1"),
    (IMAGE, {"order": "B2T"}, "order must be one of 'R2L', 'L2R', got 'B2T'"),
    (IMAGE, {"scale": "unit"}, "scale 'unit' is only supported by family 'tarflow'"),
    (IMAGE, {"soft_clip": float("nan")}, "soft_clip must be a finite number >= 0, got nan"),
    (IMAGE, {"text_length": 0}, "text_dim and text_length must be given together, got text_dim=6 and text_length=0"),
    (IMAGE, {"text_dim": 0, "text_length": 0}, "cond_top_only needs text, got text_dim=0"),
    (IMAGE, {"num_classes": 3}, "a flow reads text or a class, not both"),
    (IMAGE, {"rope_axes": 2}, "rope_axes must be 3 in a model with text"),
    (IMAGE, {"patch_size": 3}, "patch_size must divide image_size, got patch_size=3 and image_size=4"),
    (IMAGE, {"dropout": 1.0}, "dropout must be below 1, got 1.0"),
    (IMAGE, {"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16', got 'float16'"),
    (CLASSES, {"sos": True}, "sos is only supported by family 'starflow'"),
    (CLASSES, {"scale": "softplus"}, "scale must be 'exp' or 'unit' in family 'tarflow', got 'softplus'"),
    (VIDEO, {"rope": False}, "denoiser needs rope=True, got rope=False"),
    (
        VIDEO,
        {"language_model": TransformerConfig(8, 1, 2, 1, 4, rope="1d")},
        "text_dim must equal language_model.width=8",
    ),
]


@pytest.mark.parametrize("config, change, sentence", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_contradictions(config, change, sentence):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(config, **change)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_denoiser_window_needs_a_look_ahead():
    with pytest.raises(ValueError, match=r"denoiser.window \(3\) needs denoiser.look_ahead"):
        DenoiserConfig(window=3)


def test_resolved_blocks():
    config = dataclasses.replace(VIDEO, layers_per_block=(1, 0, 3))
    assert [b.layers for b in config.blocks] == [1, 0, 3]
    assert [b.width for b in config.blocks] == [20, 20, 40]
    assert [b.heads for b in config.blocks] == [1, 1, 2]
    assert [config.is_conditioned(i) for i in range(3)] == [False, False, True]
    assert [config.is_local(i) for i in range(3)] == [True, True, False]
    assert [config.reads_backwards(i) for i in range(3)] == [True, False, True]
    assert hash(config) == hash(dataclasses.replace(config))
