"""Loads the layers of Gemma 2 and 3 (arXiv 2408.00118, 2503.19786) in Hugging Face format into a deep block.

A deep block with `flow.language_model` has the same architecture: pre- and post-norms of gain 1 + weight, grouped
queries, query and key norms (Gemma 3), a gated GELU (tanh), rotary positions in halves. Models that it cannot represent
are refused. `differences` lists features that do not affect the shape and that the deep block does not compute:

- soft-capping of attention logits (Gemma 2);
- attention windows shorter than the sequence;
- rotary positions with a base other than 10000, or scaled ones (every sixth layer of Gemma 3).

Training can still start from such layers if the caller allows differences explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.models.pretrained_folder import PretrainedFolder, open_pretrained, positive, read_config
from starflow_jax.models.text.gemma import language_config, tensor_prefix

_KINDS = ("gemma2", "gemma3", "gemma3_text")
_BASE = 10000.0  # base of the block's rotary positions
_GEMMA3_BASE = 1e6  # default base of layers with full attention


def language_model_config(folder: Path) -> TransformerConfig:
    """Returns the `flow.language_model` that the layers of a folder require.

    Raises:
      ValueError: see `_transformer`; the configuration is missing or belongs to another model.
    """
    return _transformer(_checked(folder, read_config(folder)))


def _checked(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = config.get("model_type")
    check(kind in _KINDS, f"model {folder} must be of model_type {', '.join(_KINDS)}, got {kind!r}")
    return {**language_config(config), "model_type": "gemma2" if kind == "gemma2" else "gemma3_text"}


def _transformer(config: Mapping[str, Any]) -> TransformerConfig:
    """Converts the configuration of a language model to that of a transformer.

    Raises:
      ValueError: a deep block cannot represent the model.
    """
    width, hidden = positive(config, "hidden_size"), positive(config, "intermediate_size")
    check(
        hidden % width == 0,
        f"config.json must give intermediate_size as a multiple of hidden_size={width} for a deep block, got {hidden}",
    )
    for name, only in (
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("attention_bias", False),
        ("rms_norm_eps", 1e-6),
        ("use_bidirectional_attention", False),
    ):
        value = config.get(name)
        check(value is None or value == only, f"config.json must give {name} as {only!r} for a deep block, got {value}")
    return TransformerConfig(
        width=width,
        layers=positive(config, "num_hidden_layers"),
        heads=positive(config, "num_attention_heads"),
        kv_heads=positive(config, "num_key_value_heads"),
        head_dim=positive(config, "head_dim"),
        expansion=hidden // width,
        mlp="gated",
        norm="rms",
        qk_norm=config["model_type"] != "gemma2",
        post_norm=True,
        final_norm=True,
        bias=False,
        rope="1d",
        rope_pairs="half",
    )


def differences(folder: Path, slots: int) -> tuple[str, ...]:
    """Describes each feature of the language model in a folder that a deep block does not compute.

    Args:
      folder: folder in Hugging Face format.
      slots: number of text and image tokens of the longest sequence.

    Raises:
      ValueError: see `language_model_config`.
    """
    config = _checked(folder, read_config(folder))
    transformer = _transformer(config)
    kinds = _layer_kinds(config, transformer.layers)
    reasons = []
    cap = config.get("attn_logit_softcapping", 50.0 if config["model_type"] == "gemma2" else None)
    if cap:
        reasons.append(f"it caps attention logits at {cap:g}")
    window = config.get("sliding_window")
    if window and window < slots and "sliding_attention" in kinds:
        reasons.append(f"{kinds.count('sliding_attention')} layers see {window} of {slots} tokens")
    for kind in sorted(set(kinds)):
        base, scaled = _rotary(config, kind)
        if base != _BASE or scaled:
            reason = f"{kinds.count(kind)} layers have rotary positions of base {base:g}"
            reasons.append(reason + (", scaled" if scaled else ""))
    return tuple(reasons)


def _layer_kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    """Attention type of each layer, "sliding_attention" or "full_attention"."""
    layer_types = config.get("layer_types")
    if layer_types is not None:
        ok = (
            isinstance(layer_types, list)
            and len(layer_types) == layers
            and all(isinstance(kind, str) for kind in layer_types)
        )
        check(ok, f"config.json must give layer_types as {layers} names, got {layer_types!r}")
        return list(layer_types)
    period = 2 if config["model_type"] == "gemma2" else config.get("sliding_window_pattern", 6)
    check(
        isinstance(period, int) and period > 0, f"config.json must give sliding_window_pattern above 0, got {period!r}"
    )
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]


def _rotary(config: Mapping[str, Any], kind: str) -> tuple[float, bool]:
    """Rotary base of an attention type, and whether its positions are scaled."""
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping):  # newer files; for Gemma 3 by attention type
        inner = parameters.get(kind, parameters)
        inner = inner if isinstance(inner, Mapping) else parameters
        return float(inner.get("rope_theta", _BASE)), inner.get("rope_type", "default") != "default"
    gemma3 = config["model_type"] != "gemma2"
    if gemma3 and kind == "sliding_attention":
        return float(config.get("rope_local_base_freq", _BASE)), False
    base = float(config.get("rope_theta", _GEMMA3_BASE if gemma3 else _BASE))
    return base, config.get("rope_scaling") is not None


def read_deep_block(folder: Path, flow: FlowConfig, *, differs: bool = False) -> dict[str, Any]:
    """Reads the layers of a language model as `params["blocks"][last]["transformer"]` of a flow, float32.

    The other parameters of a deep block (input and output projections, start token) are not in a language model.

    Args:
      folder: folder in Hugging Face format. flow: its `language_model` must match the model's shape.
      differs: accept a model for which `differences` is not empty.

    Raises:
      ValueError: another model or shape, damaged or missing tensors, or differences without `differs`.
    """
    config, transformer = check_deep_block(folder, flow, differs=differs)
    return _layers(open_pretrained(folder), transformer, _query_factor(config, transformer.head_dim))


def check_deep_block(
    folder: Path, flow: FlowConfig, *, differs: bool = False
) -> tuple[Mapping[str, Any], TransformerConfig]:
    """Returns the configuration and shape of the language model in a folder, with the checks of `read_deep_block`."""
    config = _checked(folder, read_config(folder))
    transformer = _transformer(config)
    if transformer != flow.language_model:
        raise ValueError(f"flow.language_model must be {transformer} for {folder}, got {flow.language_model}")
    rows, columns = flow.grid
    reasons = () if differs else differences(folder, flow.text_length + rows * columns)
    check(
        not reasons,
        f"the deep block does not compute what {folder} does ({'; '.join(reasons)}); train.language_model_differs=True "
        "starts from its layers anyway",
    )
    return config, transformer


def _query_factor(config: Mapping[str, Any], head_dim: int) -> float:
    """Factor between the query scales: query_pre_attn_scalar^-1/2 in Gemma, head_dim^-1/2 here."""
    scalar = config.get("query_pre_attn_scalar", 256)
    ok = isinstance(scalar, (int, float)) and not isinstance(scalar, bool) and 0 < scalar < math.inf
    check(ok, f"config.json must give query_pre_attn_scalar above 0, got {scalar!r}")
    return math.sqrt(head_dim / scalar)


def _layers(model: PretrainedFolder, c: TransformerConfig, query_factor: float) -> dict[str, Any]:
    prefix, group, hidden = tensor_prefix(model), c.heads // c.kv_heads, c.expansion * c.width

    def read(name: str, *shape: int) -> np.ndarray:
        return model.tensor(f"{prefix}{name}.weight", shape).astype(np.float32)

    def heads(layer: str, name: str, count: int) -> np.ndarray:
        """Kernel of one projection, [D, k, count / k, d]."""
        kernel = read(f"{layer}.self_attn.{name}", count * c.head_dim, c.width)
        return kernel.T.reshape(c.width, c.kv_heads, count // c.kv_heads, c.head_dim)

    def qkv(layer: str) -> np.ndarray:
        query = heads(layer, "q_proj", c.heads)
        if not c.qk_norm:  # with a query norm, which would cancel the factor, the norm's gain contains it
            query = query * np.float32(query_factor)
        return np.concatenate([query, *(heads(layer, name, c.kv_heads) for name in ("k_proj", "v_proj"))], axis=2)

    def stacked(shape: tuple[int, ...], of_layer: Any) -> np.ndarray:
        values = np.empty((c.layers, *shape), np.float32)
        for index in range(c.layers):
            values[index] = of_layer(f"layers.{index}")
        return values

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {"kernel": stacked((inputs, outputs), lambda layer: read(f"{layer}.{name}", outputs, inputs).T)}

    def norm(name: str, width: int, factor: float = 1.0) -> dict[str, np.ndarray]:
        def gain(layer: str) -> np.ndarray:
            weight = read(f"{layer}.{name}", width)
            return weight if factor == 1.0 else (1.0 + weight) * np.float32(factor) - 1.0

        return {"weight": stacked((width,), gain)}

    packed = (c.width, c.kv_heads, group + 2, c.head_dim)
    attention = {
        "norm": norm("input_layernorm", c.width),
        "qkv": {"kernel": stacked(packed, qkv)},
        "proj": dense("self_attn.o_proj", c.heads * c.head_dim, c.width),
        "post_norm": norm("post_attention_layernorm", c.width),
    }
    if c.qk_norm:
        attention["query_norm"] = norm("self_attn.q_norm", c.head_dim, query_factor)
        attention["key_norm"] = norm("self_attn.k_norm", c.head_dim)
    mlp = {
        "norm": norm("pre_feedforward_layernorm", c.width),
        "gate": dense("mlp.gate_proj", c.width, hidden),
        "up": dense("mlp.up_proj", c.width, hidden),
        "down": dense("mlp.down_proj", hidden, c.width),
        "post_norm": norm("post_feedforward_layernorm", c.width),
    }
    return {"layers": {"attention": attention, "mlp": mlp}, "final_norm": {"weight": read("norm", c.width)}}
