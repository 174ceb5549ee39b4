"""Conversion between named tensors of the originals and parameters, both ways."""

import dataclasses

import jax
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, random_flow

from starflow_jax.core.config import TransformerConfig
from starflow_jax.flows.parameters import abstract, split
from starflow_jax.porting import flow_config, from_torch, to_torch

LANGUAGE_MODEL = TransformerConfig(6, 2, 2, 1, 4, 2, "gated", "rms", True, True, True, False, "1d", "half")
CONFIGS = {
    "image": IMAGE,
    "video": VIDEO,
    "classes": CLASSES,
    "gated": dataclasses.replace(IMAGE, mlp="gated", norm="rms", qk_norm=True, post_norm=True, bias=False, heads=2),
    "language model": dataclasses.replace(IMAGE, language_model=LANGUAGE_MODEL),
    "identity block": dataclasses.replace(IMAGE, layers_per_block=(0, 1)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_exact(name):
    _, params = split(random_flow(CONFIGS[name]))
    tensors = to_torch(params)
    assert all(isinstance(v, np.ndarray) for v in tensors.values())
    back = from_torch(tensors, abstract(CONFIGS[name])[1])
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_names_and_layouts_are_the_originals():
    tensors = to_torch(split(random_flow(VIDEO))[1])
    assert tensors["blocks.2.attn_blocks.0.attention.qkv.weight"].shape == (120, 40)
    assert tensors["blocks.2.proj_txt.weight"].shape == (40, 6)
    assert tensors["blocks.0.sos_embed"].shape == (1, 1, 2)
    assert tensors["learnable_self_denoiser.attn_blocks.1.mlp.main.2.bias"].shape == (20,)
    assert to_torch(split(random_flow(CLASSES))[1])["blocks.1.class_embed"].shape == (3, 1, 16)


def test_every_problem_is_listed_and_old_buffers_are_not():
    tensors = to_torch(split(random_flow(IMAGE))[1])
    tensors["blocks.0.attn_mask"] = np.ones((3, 3))  # deprecated: ignored
    tensors["blocks.7.proj_in.weight"] = np.ones((3, 3))
    tensors["blocks.0.proj_in.bias"] = np.ones(3)
    del tensors["blocks.1.proj_txt.bias"]
    with pytest.raises(ValueError) as error:
        from_torch(tensors, abstract(IMAGE)[1])
    sentence = str(error.value)
    assert "missing blocks.1.proj_txt.bias" in sentence
    assert "blocks.0.proj_in.bias has shape (3,), expected (40,)" in sentence
    assert "unexpected blocks.7.proj_in.weight" in sentence
    assert "attn_mask" not in sentence


def test_unknown_constructor_arguments_are_named():
    with pytest.raises(ValueError, match="unknown constructor arguments of the original: use_magic"):
        flow_config({"in_channels": 3, "layers_per_block": 1, "use_magic": 1})
