"""Converts the constructor arguments of the PyTorch originals to a `FlowConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.config.flow_config import DenoiserConfig, FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.porting import original_arguments
from starflow_jax.porting.original_arguments import LAYER_DEFAULTS, flow_fields, layer_counts, switch

# Arguments handled below, passed to calls in this project (window), or without effect on the computation.
_ELSEWHERE = {
    "in_channels", "img_size", "layers_per_block", "learnable_self_denoiser", "conditional_denoiser", "denoiser_window",
    "use_pretrained_lm", "_pretrained_lm_kwargs", "nvp", "num_classes", "local_attn_window", "context_length",
}  # fmt: skip
# Arguments of a layer, which a pretrained language model may set for the deep block.
_OF_LAYER = {*LAYER_DEFAULTS, "num_heads", "num_kv_heads"}
# Its other arguments; its positions are always rotary, and there is no projection of the text.
_OF_LANGUAGE_MODEL = {"channels", "num_layers", "use_rope", "use_proj_txt"}


def flow_config(arguments: Mapping[str, Any]) -> FlowConfig:
    """Builds the configuration of a flow from the original's constructor arguments.

    Only STARFlow has arguments for rotary positions, start tokens or the head size, so arguments without any of them
    describe a TARFlow.

    Raises:
      ValueError: an argument is unknown, one that has no default is missing, or `FlowConfig` rejects a value.
    """
    unknown = sorted(set(arguments) - original_arguments.FLOW - _ELSEWHERE)
    if unknown:
        raise ValueError(f"unknown constructor arguments of the original: {', '.join(unknown)}")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    fields = flow_fields(arguments)
    fields["channels"] = _required(arguments, "in_channels")
    fields["image_size"] = _size(_required(arguments, "img_size"))
    fields["width"], fields["num_blocks"] = _required(arguments, "channels"), _required(arguments, "num_blocks")
    layers = _required(arguments, "layers_per_block")
    fields["layers_per_block"] = layers if isinstance(layers, int) else layer_counts(layers)
    starflow_only = ("rope", "sos", "head_dim", "use_softplus", "txt_size", "seq_order")
    if not any(name in arguments for name in starflow_only):
        return _tarflow(fields, arguments)
    if not fields.get("text_length"):
        fields["text_dim"] = 0
    if arguments.get("learnable_self_denoiser"):
        fields["denoiser"] = DenoiserConfig(
            conditional=switch("conditional_denoiser", arguments.get("conditional_denoiser") or 0),
            look_ahead=arguments.get("temporal_causal") or None,
            window=arguments.get("denoiser_window") or None,
        )
    if arguments.get("use_pretrained_lm"):
        fields["language_model"] = _language_model(arguments)
    return FlowConfig(family="starflow", **fields)


def _tarflow(fields: dict[str, Any], arguments: Mapping[str, Any]) -> FlowConfig:
    return FlowConfig(
        family="tarflow",
        order="R2L",
        scale="exp" if arguments.get("nvp", True) else "unit",
        num_classes=arguments.get("num_classes") or 0,
        **fields,
    )


def _language_model(flow_arguments: Mapping[str, Any]) -> TransformerConfig:
    """The deep block of a pretrained language model; what its arguments leave out has the default of a layer."""
    given = flow_arguments.get("_pretrained_lm_kwargs")
    if not isinstance(given, Mapping):
        raise ValueError(f"_pretrained_lm_kwargs must be a mapping with use_pretrained_lm, got {given!r}")
    unknown = sorted(set(given) - _OF_LAYER - _OF_LANGUAGE_MODEL)
    if unknown:
        raise ValueError(f"unknown arguments in _pretrained_lm_kwargs: {', '.join(map(str, unknown))}")
    arguments = {**LAYER_DEFAULTS, **{name: value for name, value in given.items() if value is not None}}
    try:
        fields = flow_fields({name: value for name, value in arguments.items() if name in _OF_LAYER})
        width = _required(arguments, "channels")
        layers = arguments.get("num_layers", layer_counts(flow_arguments["layers_per_block"])[-1])
        if not fields.get("heads"):
            check_integer("head_dim", fields["head_dim"], minimum=1)
            check_integer("channels", width, minimum=1)
            fields["heads"] = width // fields["head_dim"]
        fields.setdefault("kv_heads", fields["heads"])
        return TransformerConfig(**{**fields, "width": width, "layers": layers, "rope": "1d"})
    except ValueError as error:
        raise ValueError(f"_pretrained_lm_kwargs: {error}") from error


def _required(arguments: Mapping[str, Any], name: str) -> Any:
    if arguments.get(name) is None:
        raise ValueError(f"{name} is missing in the constructor arguments of the original, and has no default")
    return arguments[name]


def _size(value: Any) -> int | tuple[int, int]:
    """Rows and columns; one number means a square."""
    size = (value, value) if isinstance(value, int) else value
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f"img_size must be a number, or rows and columns, got {value!r}")
    for name, length in zip(("rows", "columns"), size, strict=True):
        check_integer(f"img_size {name}", length, minimum=1)
    return value if isinstance(value, int) else (size[0], size[1])
