"""The tensor names of the PyTorch originals and the parameters here, as one table read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from starflow_jax.flows.parameters import Params

# Buffers that old files carry and nothing reads.
_DEPRECATED = re.compile(r"(^|\.)(attn_mask|freqs_cos|freqs_sin)$")

# Path here (layers stacked on a leading axis where the path has "layers") to the original's name.
_IN_LAYER = {
    "attention.norm": "attention.norm",
    "attention.qkv": "attention.qkv",
    "attention.proj": "attention.proj",
    "attention.query_norm": "attention.query_norm",
    "attention.key_norm": "attention.key_norm",
    "attention.post_norm": "attention.post_norm",
    "mlp.norm": "mlp.norm",
    "mlp.post_norm": "mlp.post_norm",
}
_MLP = {
    False: {"mlp.up": "mlp.main.0", "mlp.down": "mlp.main.2"},
    True: {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"},
}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _unflatten(flat: Mapping[str, Any]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _torch_name(path: str, gated: bool) -> str:
    """The original's name of the parameter at `path`; "{layer}" stands for the layer where layers are stacked."""
    name = path.replace("kernel", "weight")
    name = re.sub(r"^denoiser\.", "learnable_self_denoiser.", name)
    name = "var" if name == "prior_variance" else name
    match = re.fullmatch(r"(.*)transformer\.layers\.(.+)\.(weight|bias)", name)
    if match:
        owner, inner, leaf = match.groups()
        return f"{owner}attn_blocks.{{layer}}.{(_IN_LAYER | _MLP[gated])[inner]}.{leaf}"
    return name.replace("transformer.final_norm", "final_norm")


def _is_gated(flat: Mapping[str, Any], path: str) -> bool:
    owner = path.split("transformer.layers.")[0]
    return f"{owner}transformer.layers.mlp.gate.kernel" in flat


def _to_packed(value: np.ndarray) -> np.ndarray:
    """Rows [k, group + 2, d, ...] by key/value head as the original packs them: all queries, all keys, all values."""
    parts = (value[:, :-2], value[:, -2], value[:, -1])
    return np.concatenate([part.reshape(-1, *value.shape[3:]) for part in parts])


def _from_packed(value: np.ndarray, grouped: tuple[int, int, int]) -> np.ndarray:
    """The inverse of `_to_packed`; grouped: k, group + 2 and d."""
    kv_heads, members, dim = grouped
    queries, keys, values = np.split(value, [kv_heads * (members - 2) * dim, kv_heads * (members - 1) * dim])
    heads = [part.reshape(kv_heads, -1, dim, *value.shape[1:]) for part in (queries, keys, values)]
    return np.concatenate(heads, axis=1)


def _to_torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith(".qkv.kernel"):
        return np.ascontiguousarray(_to_packed(np.moveaxis(value, 0, -1)))
    if path.endswith(".qkv.bias"):
        return _to_packed(value)
    if path.endswith(".kernel"):
        return np.ascontiguousarray(value.T)
    if path.endswith(".sos_embed"):
        return value[None, None]
    if path.endswith(".class_embed"):
        return value[:, None]
    return value


def _from_torch_layout(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith(".qkv.kernel"):
        return np.ascontiguousarray(np.moveaxis(_from_packed(value, shape[1:]), -1, 0))  # type: ignore[arg-type]
    if path.endswith(".qkv.bias"):
        return _from_packed(value, shape)  # type: ignore[arg-type]
    if path.endswith(".kernel"):
        return np.ascontiguousarray(value.T)
    if path.endswith(".sos_embed"):
        return value[0, 0]
    if path.endswith(".class_embed"):
        return value[:, 0]
    return value


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """Parameters as the original's named tensors (linear weights [out, in], one tensor a layer)."""
    flat = _flatten(params)
    tensors: dict[str, np.ndarray] = {}
    for path, value in flat.items():
        name = _torch_name(path, _is_gated(flat, path))
        array = np.asarray(value)
        if "{layer}" in name:
            for layer, part in enumerate(array):
                tensors[name.format(layer=layer)] = _to_torch_layout(path, part)
        else:
            tensors[name] = _to_torch_layout(path, array)
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray], expected: Params) -> Params:
    """The original's named tensors as parameters.

    Args:
      tensors: name to array, as in the original's files.
      expected: the tree to fill, e.g. of ShapeDtypeStructs from `parameters.abstract`.

    Raises:
      ValueError: listing every missing, unexpected or mis-shaped tensor.
    """
    flat = _flatten(expected)
    used: set[str] = set()
    problems: list[str] = []

    def fetch(name: str, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if name not in tensors:
            problems.append(f"missing {name}")
            return None
        used.add(name)
        wanted = _to_torch_layout(path, np.broadcast_to(np.float32(0), shape)).shape
        value = np.asarray(tensors[name])
        if value.shape != wanted:
            problems.append(f"{name} has shape {value.shape}, expected {wanted}")
            return None
        return _from_torch_layout(path, value, shape)

    filled: dict[str, Any] = {}
    for path, leaf in flat.items():
        name = _torch_name(path, _is_gated(flat, path))
        if "{layer}" in name:
            parts = [fetch(name.format(layer=i), path, leaf.shape[1:]) for i in range(leaf.shape[0])]
            filled[path] = None if any(p is None for p in parts) else np.stack(parts)  # type: ignore[arg-type]
        else:
            filled[path] = fetch(name, path, leaf.shape)
    # STARFlow files carry TARFlow's buffer `var` without using it.
    ignored = {name for name in tensors if _DEPRECATED.search(name) or name == "var"}
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - used - ignored)]
    if problems:
        raise ValueError(f"the tensors do not fit the configuration: {'; '.join(problems)}")
    return _unflatten(jax.tree.map(np.asarray, filled))
