"""Reads and writes `AutoencoderKL` in the layout of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import AUTOENCODERS
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.torch_layout import from_tensors, to_tensors
from starflow_jax.tensor_formats.tensor_folders import Tensors

# Names in files older than the common attention module of diffusers, such as the first SD autoencoders.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Fields of `config.json`, and the attributes that they set.
_FIELDS = {
    "block_out_channels": "block_out_channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "in_channels": "pixel_channels",
    "norm_num_groups": "norm_num_groups",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "use_quant_conv": "use_quant_conv",
    "use_post_quant_conv": "use_post_quant_conv",
    "mid_block_add_attention": "mid_block_add_attention",
}


def read_kl(config: Mapping[str, Any], tensors: Tensors) -> tuple[AutoencoderKL, Params]:
    """The autoencoder of a configuration, and its float32 parameters.

    Raises:
      ValueError: a field is not supported by `AutoencoderKL`, or the tensors do not match.
    """
    fields = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    widths = fields.get("block_out_channels")
    check(isinstance(widths, list), f"block_out_channels must be a list of widths, got {widths!r}")
    for name in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        check(isinstance(fields.get(name, True), bool), f"{name} must be true or false, got {fields.get(name)!r}")
    autoencoder = AutoencoderKL(**(fields | {"block_out_channels": tuple(fields["block_out_channels"])}))
    _check_rest(config, autoencoder)
    expected = autoencoder.abstract()[1]
    return autoencoder, from_tensors(expected, {_new(name): value for name, value in tensors.items()}, _tensor_name)


def write_kl(autoencoder: AutoencoderKL, params: Params) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "..."]]]:
    """The configuration, without its `_class_name`, and the tensors."""
    resolutions = len(autoencoder.block_out_channels)
    config: dict[str, Any] = {theirs: getattr(autoencoder, ours) for theirs, ours in _FIELDS.items()}
    config |= {
        "block_out_channels": list(autoencoder.block_out_channels),
        "shift_factor": autoencoder.shift_factor or None,
        "out_channels": autoencoder.pixel_channels,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * resolutions,
        "up_block_types": ["UpDecoderBlock2D"] * resolutions,
    }
    return config, to_tensors(params, _tensor_name)


def _check_rest(config: Mapping[str, Any], autoencoder: AutoencoderKL) -> None:
    """Raises ValueError where another field specifies a different network."""
    resolutions = len(autoencoder.block_out_channels)
    for name, only in (
        ("out_channels", autoencoder.pixel_channels),
        ("act_fn", "silu"),
        ("down_block_types", ["DownEncoderBlock2D"] * resolutions),
        ("up_block_types", ["UpDecoderBlock2D"] * resolutions),
        ("latents_mean", None),
        ("latents_std", None),
    ):
        value = config.get(name, only)
        check(value == only, f"{name} must be {only!r}, the only supported value, got {value!r}")


def _tensor_name(path: str) -> str:
    return path.replace(".to_out.", ".to_out.0.")


def _new(name: str) -> str:
    *front, layer, leaf = name.rsplit(".", 2)
    return ".".join([*front, _OLD_NAMES[layer], leaf]) if ".attentions." in name and layer in _OLD_NAMES else name


@AUTOENCODERS.register("AutoencoderKL")
class KLFormat:
    """See `AutoencoderFormat`."""

    kind = AutoencoderKL
    read = staticmethod(read_kl)
    write = staticmethod(write_kl)
