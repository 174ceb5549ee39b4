"""Arguments of the PyTorch originals and their meaning here, for constructor arguments as for released YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Arguments of the flow whose value is unchanged, to the field of `FlowConfig`.
UNCHANGED = {
    "patch_size": "patch_size",
    "channels": "width",
    "top_block_channels": "deep_width",
    "num_blocks": "num_blocks",
    "head_dim": "head_dim",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "expansion": "expansion",
    "pt_seq_len": "pt_seq_len",
    "txt_size": "text_length",
    "txt_dim": "text_dim",
    "soft_clip": "soft_clip",
    "seq_order": "order",
}
# Arguments of 0 or 1.
SWITCHES = {
    "rope": "rope",
    "sos": "sos",
    "use_final_norm": "final_norm",
    "use_qk_norm": "qk_norm",
    "use_post_norm": "post_norm",
    "use_bias": "bias",
    "cond_top_only": "cond_top_only",
    "temporal_causal": "temporal_causal",
    "shallow_block_local": "shallow_local",
}
CHOICES: dict[str, tuple[str, dict[Any, str]]] = {
    "use_softplus": ("scale", {False: "exp", True: "softplus"}),
    "use_swiglu": ("mlp", {False: "gelu", True: "gated"}),
    "hf_style_rope": ("rope_pairs", {False: "adjacent", True: "half"}),
    "norm_type": ("norm", {"layer_norm": "layer", "rms_norm": "rms"}),
}
FLOW = {*UNCHANGED, *SWITCHES, *CHOICES}
# Arguments whose null means the same as their absence.
OPTIONAL = {"top_block_channels", "num_heads", "num_kv_heads", "pt_seq_len"}
# What the layers of the originals take where an argument is absent.
LAYER_DEFAULTS: Mapping[str, Any] = {
    "head_dim": 64,
    "expansion": 4,
    "use_swiglu": False,
    "norm_type": "layer_norm",
    "use_qk_norm": False,
    "use_post_norm": False,
    "use_final_norm": False,
    "use_bias": True,
    "hf_style_rope": False,
}


def flow_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `FlowConfig` that the arguments of these tables give; other arguments are left out.

    Raises:
      ValueError: a value is not of the kind that its argument has.
    """
    fields = {UNCHANGED[name]: unchanged(name, value) for name, value in arguments.items() if name in UNCHANGED}
    fields |= {SWITCHES[name]: switch(name, value) for name, value in arguments.items() if name in SWITCHES}
    fields |= {CHOICES[name][0]: chosen(name, value) for name, value in arguments.items() if name in CHOICES}
    return fields


def unchanged(name: str, value: Any) -> Any:
    """A number or, for `seq_order`, a word; YAML 1.1 reads numbers such as 1e-4, without a decimal point, as text."""
    if value is None and name in OPTIONAL:
        return None
    if isinstance(value, str) and name != "seq_order":
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value!r}") from None
    if value is None or isinstance(value, (list, tuple, dict)):
        raise ValueError(f"{name} must be a {'word' if name == 'seq_order' else 'number'}, got {value!r}")
    return value


def switch(name: str, value: Any) -> bool:
    """An argument of 0 or 1; `temporal_causal` may be any whole number, whose 0 means no."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be 0 or 1, got {value!r}")
    return bool(value)


def chosen(name: str, value: Any) -> str:
    """The value of a field that an argument with few values stands for."""
    values = CHOICES[name][1]
    if True in values:
        return values[switch(name, value)]
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {value!r}")
    return values[value]


def layer_counts(value: Any) -> tuple[int, ...]:
    """`layers_per_block`: a number, or a list of numbers, also as text with commas.

    Raises:
      ValueError: it is something else.
    """
    counts = value.replace(",", " ").split() if isinstance(value, str) else value
    counts = [counts] if isinstance(counts, int) else counts
    try:
        if not isinstance(counts, (list, tuple)):
            raise TypeError
        result = tuple(int(count) for count in counts)
        if any(isinstance(count, (float, bool)) and count != int(count) for count in counts):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"layers_per_block must be integers, got {value!r}") from None
    return result
