"""Layers of Gemma 2 and 3 (arXiv 2408.00118, 2503.19786), in Hugging Face's layout, as those of a deep block.

A pretrained-LM-shaped deep block is built like them: pre- and post-norms of gain 1 + weight, grouped queries, in
Gemma 3 norms of queries and keys, a gated GELU (tanh), rotary positions in halves. What it can not be is refused. What
it does not do, although its shape is theirs, is listed by `differences`:

- soft caps of attention logits (Gemma 2);
- windows of attention shorter than the sequence;
- rotary positions of another base than 10000, or scaled ones (every sixth layer of Gemma 3).

Training may well start from such layers all the same, if it says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow import FlowConfig, TransformerConfig
from starflow_jax.models.pretrained_folder import PretrainedFolder, open_pretrained, positive, read_config
from starflow_jax.models.text.gemma import language_config, tensor_prefix

_KINDS = ("gemma2", "gemma3", "gemma3_text")
_BASE = 10000.0  # of the block's rotary positions
_GEMMA3_BASE = 1e6  # of layers that see everything, where a configuration does not say


def language_model_config(folder: Path) -> TransformerConfig:
    """What `flow.language_model` must be for the layers of a folder.

    Raises:
      ValueError: see `_transformer`; no configuration, or one of another model.
    """
    return _transformer(_checked(folder, read_config(folder)))


def _checked(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = config.get("model_type")
    check(kind in _KINDS, f"model {folder} must be of model_type {', '.join(_KINDS)}, got {kind!r}")
    return {**language_config(config), "model_type": "gemma2" if kind == "gemma2" else "gemma3_text"}


def _transformer(config: Mapping[str, Any]) -> TransformerConfig:
    """The shape of a language model.

    Raises:
      ValueError: one that no block can have.
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
    """What the language model in a folder does and a deep block does not, a clause each.

    Args:
      slots: text and image tokens of the longest sequence.

    Raises:
      ValueError: see `language_model_config`.
    """
    config = _checked(folder, read_config(folder))
    transformer = _transformer(config)
    kinds = _layer_kinds(config, transformer.layers)
    found = []
    cap = config.get("attn_logit_softcapping", 50.0 if config["model_type"] == "gemma2" else None)
    if cap:
        found.append(f"it caps attention logits at {cap:g}")
    window = config.get("sliding_window")
    if window and window < slots and "sliding_attention" in kinds:
        found.append(f"{kinds.count('sliding_attention')} layers see {window} of {slots} tokens")
    for kind in sorted(set(kinds)):
        base, scaled = _rotary(config, kind)
        if base != _BASE or scaled:
            how = f"{kinds.count(kind)} layers have rotary positions of base {base:g}"
            found.append(how + (", scaled" if scaled else ""))
    return tuple(found)


def _layer_kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    """Of every layer "sliding_attention" or "full_attention"."""
    given = config.get("layer_types")
    if given is not None:
        ok = isinstance(given, list) and len(given) == layers and all(isinstance(kind, str) for kind in given)
        check(ok, f"config.json must give layer_types as {layers} names, got {given!r}")
        return list(given)
    every = 2 if config["model_type"] == "gemma2" else config.get("sliding_window_pattern", 6)
    check(isinstance(every, int) and every > 0, f"config.json must give sliding_window_pattern above 0, got {every!r}")
    return ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]


def _rotary(config: Mapping[str, Any], kind: str) -> tuple[float, bool]:
    """Base of the rotary positions of a kind of layer, and whether they are scaled."""
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping):  # newer files; of Gemma 3 by kind of layer
        inner = parameters.get(kind, parameters)
        inner = inner if isinstance(inner, Mapping) else parameters
        return float(inner.get("rope_theta", _BASE)), inner.get("rope_type", "default") != "default"
    gemma3 = config["model_type"] != "gemma2"
    if gemma3 and kind == "sliding_attention":
        return float(config.get("rope_local_base_freq", _BASE)), False
    base = float(config.get("rope_theta", _GEMMA3_BASE if gemma3 else _BASE))
    return base, config.get("rope_scaling") is not None


def read_deep_block(folder: Path, flow: FlowConfig, *, differs: bool = False) -> dict[str, Any]:
    """The layers of a language model as `params["blocks"][last]["transformer"]` of a flow, float32.

    What a deep block has besides (its projections in and out, its start token) is not in a language model.

    Args:
      folder: in Hugging Face's layout. flow: whose `language_model` must have that shape.
      differs: also where `differences` finds some.

    Raises:
      ValueError: a folder of another model or shape, damaged or missing tensors; differences, without `differs`.
    """
    config, transformer = check_deep_block(folder, flow, differs=differs)
    return _layers(open_pretrained(folder), transformer, _query_factor(config, transformer.head_dim))


def check_deep_block(
    folder: Path, flow: FlowConfig, *, differs: bool = False
) -> tuple[Mapping[str, Any], TransformerConfig]:
    """The configuration and shape of the language model in a folder, checked as by `read_deep_block`."""
    config = _checked(folder, read_config(folder))
    transformer = _transformer(config)
    if transformer != flow.language_model:
        raise ValueError(f"flow.language_model must be {transformer} for {folder}, got {flow.language_model}")
    rows, columns = flow.grid
    found = () if differs else differences(folder, flow.text_length + rows * columns)
    check(
        not found,
        f"the deep block does not compute what {folder} does ({'; '.join(found)}); train.language_model_differs=True "
        "starts from its layers all the same",
    )
    return config, transformer


def _query_factor(config: Mapping[str, Any], head_dim: int) -> float:
    """Queries are scaled by query_pre_attn_scalar^-1/2 there and by head_dim^-1/2 here."""
    scalar = config.get("query_pre_attn_scalar", 256)
    ok = isinstance(scalar, (int, float)) and not isinstance(scalar, bool) and 0 < scalar < math.inf
    check(ok, f"config.json must give query_pre_attn_scalar above 0, got {scalar!r}")
    return math.sqrt(head_dim / scalar)


def _layers(model: PretrainedFolder, c: TransformerConfig, query_factor: float) -> dict[str, Any]:
    prefix, group, hidden = tensor_prefix(model), c.heads // c.kv_heads, c.expansion * c.width

    def read(name: str, *shape: int) -> np.ndarray:
        return model.tensor(f"{prefix}{name}.weight", shape).astype(np.float32)

    def heads(layer: str, name: str, count: int) -> np.ndarray:
        """[D, k, heads of a group, d]."""
        kernel = read(f"{layer}.self_attn.{name}", count * c.head_dim, c.width)
        return kernel.T.reshape(c.width, c.kv_heads, count // c.kv_heads, c.head_dim)

    def qkv(layer: str) -> np.ndarray:
        query = heads(layer, "q_proj", c.heads)
        if not c.qk_norm:  # else the factor is in the norm, which would take it away
            query = query * np.float32(query_factor)
        return np.concatenate([query, *(heads(layer, name, c.kv_heads) for name in ("k_proj", "v_proj"))], axis=2)

    def stacked(shape: tuple[int, ...], of_layer: Any) -> np.ndarray:
        found = np.empty((c.layers, *shape), np.float32)
        for place in range(c.layers):
            found[place] = of_layer(f"layers.{place}")
        return found

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
