"""Converts the constructor arguments of the PyTorch originals to a `FlowConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starflow_jax.core.config.flow_config import DenoiserConfig, FlowConfig, TransformerConfig

# Argument names of the original to field names, for arguments whose value is unchanged.
_SAME_VALUE = {
    "in_channels": "channels",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "channels": "width",
    "top_block_channels": "deep_width",
    "num_blocks": "num_blocks",
    "head_dim": "head_dim",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "expansion": "expansion",
    "pt_seq_len": "pt_seq_len",
    "txt_dim": "text_dim",
    "txt_size": "text_length",
    "soft_clip": "soft_clip",
    "seq_order": "order",
}
_SWITCHES = {
    "use_qk_norm": "qk_norm",
    "use_post_norm": "post_norm",
    "use_final_norm": "final_norm",
    "use_bias": "bias",
    "rope": "rope",
    "sos": "sos",
    "cond_top_only": "cond_top_only",
    "temporal_causal": "temporal_causal",
    "shallow_block_local": "shallow_local",
}
_CHOICES: dict[str, tuple[str, dict[Any, str]]] = {
    "use_softplus": ("scale", {False: "exp", True: "softplus"}),
    "use_swiglu": ("mlp", {False: "gelu", True: "gated"}),
    "hf_style_rope": ("rope_pairs", {False: "adjacent", True: "half"}),
    "norm_type": ("norm", {"layer_norm": "layer", "rms_norm": "rms"}),
}
# Arguments handled below, passed to calls in this project (window), or without effect on the computation.
_ELSEWHERE = {
    "layers_per_block", "learnable_self_denoiser", "conditional_denoiser", "denoiser_window", "use_pretrained_lm",
    "_pretrained_lm_kwargs", "nvp", "num_classes", "local_attn_window", "context_length",
}  # fmt: skip


def flow_config(arguments: Mapping[str, Any]) -> FlowConfig:
    """Builds the configuration of a flow from the original's constructor arguments.

    Only STARFlow has arguments for rotary positions, start tokens or the head size, so arguments without any of them
    describe a TARFlow.

    Raises:
      ValueError: an argument is unknown, or `FlowConfig` rejects a value.
    """
    unknown = sorted(set(arguments) - set(_SAME_VALUE) - set(_SWITCHES) - set(_CHOICES) - _ELSEWHERE)
    if unknown:
        raise ValueError(f"unknown constructor arguments of the original: {', '.join(unknown)}")
    fields: dict[str, Any] = {_SAME_VALUE[k]: v for k, v in arguments.items() if k in _SAME_VALUE}
    fields |= {_SWITCHES[k]: bool(v) for k, v in arguments.items() if k in _SWITCHES}
    for name, (field, choices) in _CHOICES.items():
        if name in arguments:
            value = arguments[name]
            fields[field] = choices[value if isinstance(value, str) else bool(value)]
    layers = arguments["layers_per_block"]
    fields["layers_per_block"] = tuple(layers) if isinstance(layers, (list, tuple)) else layers
    starflow_only = ("rope", "sos", "head_dim", "use_softplus", "txt_size", "seq_order")
    if not any(name in arguments for name in starflow_only):
        return _tarflow(fields, arguments)
    if not fields.get("text_length"):
        fields["text_dim"] = 0
    if arguments.get("learnable_self_denoiser"):
        fields["denoiser"] = DenoiserConfig(
            conditional=bool(arguments.get("conditional_denoiser")),
            look_ahead=arguments.get("temporal_causal") or None,
            window=arguments.get("denoiser_window") or None,
        )
    if arguments.get("use_pretrained_lm"):
        fields["language_model"] = _language_model(arguments["_pretrained_lm_kwargs"])
    return FlowConfig(family="starflow", **fields)


def _tarflow(fields: dict[str, Any], arguments: Mapping[str, Any]) -> FlowConfig:
    return FlowConfig(
        family="tarflow",
        order="R2L",
        scale="exp" if arguments.get("nvp", True) else "unit",
        num_classes=arguments.get("num_classes") or 0,
        **fields,
    )


def _language_model(arguments: Mapping[str, Any]) -> TransformerConfig:
    return TransformerConfig(
        width=arguments["channels"],
        layers=arguments["num_layers"],
        heads=arguments["num_heads"],
        kv_heads=arguments["num_kv_heads"],
        head_dim=arguments["head_dim"],
        expansion=arguments["expansion"],
        mlp="gated" if arguments["use_swiglu"] else "gelu",
        norm="rms" if arguments["norm_type"] == "rms_norm" else "layer",
        qk_norm=bool(arguments["use_qk_norm"]),
        post_norm=bool(arguments["use_post_norm"]),
        final_norm=bool(arguments["use_final_norm"]),
        bias=bool(arguments["use_bias"]),
        rope="1d",
        rope_pairs="half" if arguments["hf_style_rope"] else "adjacent",
    )
