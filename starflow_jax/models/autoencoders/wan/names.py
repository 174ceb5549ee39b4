"""Tensor names of Wan autoencoders in diffusers folders and in the original Wan2.2 file.

Both are functions of the path of the parameter here, such as "encoder.levels.0.blocks.1.conv1.kernel".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.wan.config import WanConfig

Tensors = Mapping[str, np.ndarray]
Name = Callable[[WanConfig, str], str]  # maps the path of a layer, "encoder.levels.0.blocks.1.conv1", to its name

_TENSOR = {"kernel": "weight", "bias": "bias", "weight": "gamma"}  # only the gains of norms are vectors called weight


def diffusers_name(config: WanConfig, path: str) -> str:
    """The name of a layer in a diffusers folder."""
    name = path.replace("encoder.mix_out", "quant_conv").replace("decoder.mix_in", "post_quant_conv")
    name = name.replace(".middle.attention.project", ".middle.attention.to_qkv")
    name = name.replace(".middle.attention.out", ".middle.attention.proj")
    name = re.sub(r"\.middle\.attention", ".mid_block.attentions.0", name)
    name = name.replace(".middle.first", ".mid_block.resnets.0").replace(".middle.second", ".mid_block.resnets.1")
    name = name.replace(".shortcut", ".conv_shortcut").replace(".resample.conv", ".resample.resample.1")
    match = re.fullmatch(r"(en|de)coder\.levels\.(\d+)\.(blocks|resample)\.(.+)", name)
    if match is None:
        return name
    side, level, part, rest = match.groups()
    index, _, inner = rest.partition(".")
    if side == "de":
        upsampler = "upsampler" if config.residual else "upsamplers.0"
        inner = f"resnets.{rest}" if part == "blocks" else f"{upsampler}.{rest}"
        return f"decoder.up_blocks.{level}.{inner}"
    if config.residual:
        inner = f"resnets.{rest}" if part == "blocks" else f"downsampler.{rest}"
        return f"encoder.down_blocks.{level}.{inner}"
    # Without level shortcuts, the blocks and downsamplers of all levels are numbered consecutively.
    first = int(level) * (config.blocks + 1)
    if part == "blocks":
        return f"encoder.down_blocks.{first + int(index)}.{inner}"
    return f"encoder.down_blocks.{first + config.blocks}.{rest}"


def original_name(config: WanConfig, path: str) -> str:
    """The name of a layer in `Wan2.2_VAE.pth`."""
    name = path.replace("encoder.mix_out", "conv1").replace("decoder.mix_in", "conv2")
    name = name.replace(".middle.attention.project", ".middle.1.to_qkv").replace(
        ".middle.attention.out", ".middle.1.proj"
    )
    name = name.replace(".middle.attention", ".middle.1")
    name = name.replace(".middle.first", ".middle.0").replace(".middle.second", ".middle.2")
    name = name.replace(".conv_in", ".conv1").replace(".norm_out", ".head.0").replace(".conv_out", ".head.2")
    match = re.fullmatch(r"(en|de)coder\.levels\.(\d+)\.(blocks\.(\d+)|resample)\.(.+)", name)
    if match is not None:
        side, level, _, index, rest = match.groups()
        group = "downsamples" if side == "en" else "upsamples"
        last = config.blocks if side == "en" else config.blocks + 1
        rest = "resample.1" if index is None and rest == "conv" else rest
        name = f"{side}coder.{group}.{level}.{group}.{index or last}.{rest}"
    for layer, position in (("norm1", 0), ("conv1", 2), ("norm2", 3), ("conv2", 6)):
        # In residual blocks only: the outermost convolutions are called conv1, too.
        name = re.sub(rf"((samples|middle)\.\d+)\.{layer}$", rf"\1.residual.{position}", name)
    return name


def to_tensors(config: WanConfig, params: Params, name: Name = diffusers_name) -> dict[str, Float[np.ndarray, "..."]]:
    """Parameters as named tensors, float32, [outputs, inputs, (frames,) rows, columns]."""
    flat = _flat(params)
    return {_tensor_name(config, path, name): _to_tensor(path, np.asarray(value)) for path, value in flat.items()}


def from_tensors(config: WanConfig, tensors: Tensors, expected: Params, name: Name = diffusers_name) -> dict[str, Any]:
    """Named tensors of any floating-point dtype as nested float32 parameters.

    Args:
      config: the sizes; tensors: tensors by name; expected: the tree as ShapeDtypeStructs; name: of a layer.

    Raises:
      ValueError: tensors are missing, unexpected, of another shape or not finite; the message lists them.
    """
    filled: dict[str, Any] = {}
    problems, used = [], set()
    for path, leaf in _flat(expected).items():
        tensor = _tensor_name(config, path, name)
        shape = _to_tensor(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        used.add(tensor)
        if tensor not in tensors:
            problems.append(f"missing {tensor}")
        elif tensors[tensor].shape != shape:
            problems.append(f"{tensor} has shape {list(tensors[tensor].shape)}, expected {list(shape)}")
        elif not np.isfinite(value := np.asarray(tensors[tensor], np.float32)).all():
            problems.append(f"{tensor} contains numbers that are not finite")
        else:
            _put(filled, path, _from_tensor(path, value).reshape(leaf.shape))
    problems += [f"unexpected {tensor}" for tensor in sorted(set(tensors) - used)]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    check(not problems, f"tensors do not fit the configuration: {'; '.join(problems[:5])}{more}")
    return filled


def _tensor_name(config: WanConfig, path: str, name: Name) -> str:
    layer, _, leaf = path.rpartition(".")
    return f"{name(config, layer)}.{_TENSOR[leaf]}"


def _to_tensor(path: str, value: np.ndarray) -> np.ndarray:
    in_attention = ".attention." in path
    if path.endswith(".weight"):
        return value.reshape(-1, *(1,) * (2 if in_attention else 3))
    if not path.endswith(".kernel"):
        return value
    if value.ndim == 2:
        value = value.reshape(*(1,) * (2 if in_attention else 3), *value.shape)
    return np.ascontiguousarray(np.moveaxis(value, (-1, -2), (0, 1)))


def _from_tensor(path: str, value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(value, (0, 1), (-1, -2))) if path.endswith(".kernel") else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _put(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
