"""Infers the configuration of a flow from the tensors of a file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from starflow_jax.core.config.flow_config import DenoiserConfig, FlowConfig
from starflow_jax.tensor_formats.tensors import LazyTensor

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYER = re.compile(r"attn_blocks\.(\d+)\.(.+)")


def infer(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Infers the fields of a `FlowConfig` that names and shapes determine; "denoiser" is its number of layers or 0.

    Fields that they do not determine, such as the token order, the kind of rotary positions or the soft clip, are
    absent, as are fields whose tensor is missing or malformed.
    """
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
    denoiser = {
        name.removeprefix("learnable_self_denoiser."): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("learnable_self_denoiser.")
    }
    # A block with 0 layers has no tensors; if the first blocks have none, their widths do not matter.
    num_blocks = max(blocks, default=-1) + 1
    used = {index: shapes for index, shapes in blocks.items() if _matrix(shapes, "proj_in.weight")}
    if not used:
        return {}
    layers = tuple(_layers(blocks.get(index, {})) for index in range(num_blocks))
    facts: dict[str, Any] = {"num_blocks": num_blocks, "layers_per_block": layers}
    first, deep = used[min(used)], blocks[num_blocks - 1]
    width, token_channels = first["proj_in.weight"]
    facts["token_channels"] = token_channels
    if min(used) < num_blocks - 1:
        facts["width"] = width
    if matrix := _matrix(deep, "proj_in.weight"):
        facts["deep_width"] = matrix[0]
    if min(used) == num_blocks - 1:
        first = deep
    facts |= _layer_facts(first)
    facts["sos"] = "sos_embed" in first
    facts["rope"] = "pos_embed" not in first
    facts["final_norm"] = "final_norm.weight" in first
    if "class_embed" in first and len(first["class_embed"]) == 3:
        facts["num_classes"] = first["class_embed"][0]
    if text := _matrix(deep, "proj_txt.weight"):
        facts["text_dim"] = text[1]
        if num_blocks > 1 and min(used) < num_blocks - 1:
            facts["cond_top_only"] = "proj_txt.weight" not in first
    out = _matrix(first, "proj_out.weight")
    if out and out[0] == token_channels:
        facts["scale"] = "unit"
    facts["denoiser"] = _layers(denoiser)
    if tokens := _tokens(first, tensors):
        facts["tokens"] = tokens
    return facts


def _layer_facts(block: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Infers the fields that all layers of a block share from its first layer."""
    facts: dict[str, Any] = {
        "bias": "attn_blocks.0.attention.qkv.bias" in block,
        "qk_norm": "attn_blocks.0.attention.query_norm.weight" in block,
        "post_norm": "attn_blocks.0.attention.post_norm.weight" in block,
        "norm": "layer" if "attn_blocks.0.attention.norm.bias" in block else "rms",
        "mlp": "gated" if "attn_blocks.0.mlp.gate_proj.weight" in block else "gelu",
    }
    hidden = _matrix(block, f"attn_blocks.0.mlp.{'up_proj' if facts['mlp'] == 'gated' else 'main.0'}.weight")
    if hidden and hidden[0] % hidden[1] == 0:
        facts["expansion"] = hidden[0] // hidden[1]
    head = block.get("attn_blocks.0.attention.query_norm.weight")
    qkv = _matrix(block, "attn_blocks.0.attention.qkv.weight")
    proj = _matrix(block, "attn_blocks.0.attention.proj.weight")
    if head and len(head) == 1 and head[0] and proj and qkv:
        # Only the weights of the query norm determine the head size.
        facts["head_dim"] = head[0]
        facts["heads"] = proj[1] // head[0]
        facts["kv_heads"] = (qkv[0] - proj[1]) // (2 * head[0])
    return facts


def _layers(block: Mapping[str, tuple[int, ...]]) -> int:
    matches = (_LAYER.fullmatch(name) for name in block)
    return max((int(match[1]) for match in matches if match), default=-1) + 1


def _tokens(block: Mapping[str, tuple[int, ...]], tensors: Mapping[str, LazyTensor]) -> int | None:
    """Number of tokens of an image: learned positions and TARFlow's prior variance have one row per token."""
    for shape in (block.get("pos_embed"), tuple(tensors["var"].shape) if "var" in tensors else None):
        if shape and len(shape) == 2:
            return shape[0]
    return None


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int] | None:
    shape = shapes.get(name)
    return (shape[0], shape[1]) if shape and len(shape) == 2 and math.prod(shape) else None


def config_facts(config: FlowConfig) -> dict[str, Any]:
    """The same fields of a configuration, for comparison with the result of `infer`."""
    shallow, deep = config.blocks[0], config.blocks[-1]
    return {
        "num_blocks": config.num_blocks,
        "layers_per_block": tuple(block.layers for block in config.blocks),
        "token_channels": config.token_channels,
        "width": shallow.width,
        "deep_width": deep.width,
        "head_dim": shallow.head_dim,
        "heads": shallow.heads,
        "kv_heads": shallow.kv_heads,
        "expansion": shallow.expansion,
        "mlp": shallow.mlp,
        "norm": shallow.norm,
        "qk_norm": shallow.qk_norm,
        "post_norm": shallow.post_norm,
        "final_norm": shallow.final_norm,
        "bias": shallow.bias,
        "sos": config.sos,
        "rope": config.rope,
        "scale": config.scale,
        "num_classes": config.num_classes,
        "text_dim": config.text_dim,
        "cond_top_only": config.cond_top_only,
        "denoiser": 0 if config.denoiser is None else config.denoiser.layers,
        "tokens": math.prod(config.grid),
    }


def contradictions(config: FlowConfig, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Describes each field in which the tensors contradict a configuration."""
    in_file, in_config = infer(tensors), config_facts(config)
    if config.rope and config.family == "starflow":
        in_file.pop("tokens", None)  # from an unused buffer, whose size is not that of the data
    if config.language_model is not None:
        in_file.pop("deep_width", None)
        in_config.pop("text_dim")  # such a block has no text projection to infer it from
    return [
        f"{name} is {value!r} in the file and {in_config[name]!r} in the configuration"
        for name, value in in_file.items()
        if name in in_config and in_config[name] != value
    ]


def with_inferred(config: FlowConfig, tensors: Mapping[str, LazyTensor]) -> FlowConfig:
    """Replaces the fields of a configuration that the tensors determine.

    Raises:
      ValueError: the inferred fields and the rest do not form a valid configuration.
    """
    in_file, in_config = infer(tensors), config_facts(config)
    changes = {name: value for name, value in in_file.items() if name in in_config and in_config[name] != value}
    layers, token_channels = changes.pop("denoiser", None), changes.pop("token_channels", None)
    changes.pop("tokens", None)  # the number of tokens does not determine rows and columns
    if token_channels is not None:
        if token_channels % config.patch_size**2:
            raise ValueError(
                f"patch_size must be such that its square divides the {token_channels} channels of a token in the "
                f"file, got {config.patch_size}"
            )
        changes["channels"] = token_channels // config.patch_size**2
    if config.language_model is not None:
        changes = {name: value for name, value in changes.items() if name not in ("text_dim", "deep_width")}
    elif config.text_dim and "text_dim" not in in_file:
        changes |= {"text_dim": 0, "text_length": 0, "cond_top_only": False}
    if layers is not None:
        changes["denoiser"] = (
            dataclasses.replace(config.denoiser or DenoiserConfig(), layers=layers) if layers else None
        )
    return dataclasses.replace(config, **changes)
