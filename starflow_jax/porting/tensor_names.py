"""Maps between the tensor names of the PyTorch originals and parameter paths, with one table for both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starflow_jax.core.choices import Quantisation
from starflow_jax.flows.parameters import Params
from starflow_jax.nn.stored_kernels import scheme_of_dtype
from starflow_jax.tensor_formats.tensors import LazyTensor

# The end of the name of a tensor with the scales of quantised weights, which the originals do not have.
SCALE = ".weight_scale"
_KERNELS = (".kernel", ".scale")
_PACKED = tuple(f".qkv{kind}" for kind in _KERNELS)
# Scale, shift and gate of an adaptive norm, [D, 3, D] here and [3 D, D] in a file.
_MODULATION = tuple(f".modulation{kind}" for kind in _KERNELS)

_TILE = 256  # rows and columns of a tile in a transposition

# Buffers that nothing reads: of old files, and the count that an averaged model keeps.
_UNUSED = re.compile(r"(^|\.)(attn_mask|freqs_cos|freqs_sin|n_averaged)$")

# Parameter path (layers are stacked on a leading axis if the path has "layers") to the original's name.
_IN_LAYER = {
    "attention.norm": "attention.norm",
    "attention.norm.modulation": "attention.norm.modulation",
    "attention.qkv": "attention.qkv",
    "attention.proj": "attention.proj",
    "attention.query_norm": "attention.query_norm",
    "attention.key_norm": "attention.key_norm",
    "attention.post_norm": "attention.post_norm",
    "mlp.norm": "mlp.norm",
    "mlp.norm.modulation": "mlp.norm.modulation",
    "mlp.post_norm": "mlp.post_norm",
}
_MLP = {
    False: {"mlp.up": "mlp.main.0", "mlp.down": "mlp.main.2"},
    True: {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"},
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries to a dictionary with dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def is_stacked(path: str) -> bool:
    """Whether the parameter at a dotted path holds all layers of a transformer, along its first axis."""
    return "layers" in path.split(".")


def _torch_name(path: str, gated: bool) -> str:
    """The original's name of the parameter at `path`, with the placeholder "{layer}" if layers are stacked."""
    name = path.replace("kernel", "weight")
    name = re.sub(r"\.scale$", SCALE, name)
    name = re.sub(r"^denoiser\.", "learnable_self_denoiser.", name)
    name = "var" if name == "prior_variance" else name
    match = re.fullmatch(r"(.*)transformer\.layers\.(.+)\.(weight|bias|weight_scale)", name)
    if match:
        owner, inner, leaf = match.groups()
        return f"{owner}attn_blocks.{{layer}}.{(_IN_LAYER | _MLP[gated])[inner]}.{leaf}"
    return name.replace("transformer.final_norm", "final_norm")


def _is_gated(flat: Mapping[str, Any], path: str) -> bool:
    owner = path.split("transformer.layers.")[0]
    return f"{owner}transformer.layers.mlp.gate.kernel" in flat


def _to_packed(value: np.ndarray) -> np.ndarray:
    """Flattens [..., k, group + 2, d] in the original's order: all queries, all keys, all values."""
    parts = (value[..., :-2, :], value[..., -2, :], value[..., -1, :])
    lead = value.shape[:-3]
    return np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)


def _from_packed(value: np.ndarray, grouped: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_to_packed`; `grouped` is (k, group + 2, d)."""
    kv_heads, members, dim = grouped
    result = np.empty((*value.shape[:-1], *grouped), value.dtype)
    cuts = [kv_heads * (members - 2) * dim, kv_heads * (members - 1) * dim]
    indices: tuple[Any, ...] = (slice(None, -2), -2, -1)
    for index, part in zip(indices, np.split(value, cuts, axis=-1), strict=True):
        target = result[..., index, :]
        target[...] = part.reshape(target.shape)
    return result


def _transposed(value: np.ndarray) -> np.ndarray:
    """Transposes a matrix into a contiguous array tile by tile, which avoids cache misses for large matrices."""
    rows, columns = value.shape
    result = np.empty((columns, rows), value.dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = value[row : row + _TILE, column : column + _TILE]
            result[column : column + _TILE, row : row + _TILE] = tile.T
    return result


def _to_torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    if path.endswith(_PACKED):
        return _transposed(_to_packed(value))
    if path.endswith(".qkv.bias"):
        return _to_packed(value)
    if path.endswith(_MODULATION):
        return _transposed(value.reshape(value.shape[0], -1))
    if path.endswith(".modulation.bias"):
        return value.reshape(-1)
    if path.endswith(_KERNELS):
        return _transposed(value)
    if path.endswith(".sos_embed"):
        return value[None, None]
    if path.endswith(".class_embed"):
        return value[:, None]
    return value


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `_to_torch_layout` of an array of `shape`, without creating an array."""
    if path.endswith((*_PACKED, *_MODULATION)):
        return math.prod(shape[1:]), shape[0]
    if path.endswith((".qkv.bias", ".modulation.bias")):
        return (math.prod(shape),)
    if path.endswith(_KERNELS):
        return shape[::-1]
    if path.endswith(".sos_embed"):
        return (1, 1, *shape)
    if path.endswith(".class_embed"):
        return (shape[0], 1, *shape[1:])
    return shape


def _from_torch_layout(path: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith(_PACKED):
        return _from_packed(_transposed(value), shape[1:])
    if path.endswith(".qkv.bias"):
        return _from_packed(value, shape)
    if path.endswith(_MODULATION):
        return _transposed(value).reshape(shape)
    if path.endswith(".modulation.bias"):
        return value.reshape(shape)
    if path.endswith(_KERNELS):
        return _transposed(value)
    if path.endswith(".sos_embed"):
        return value[0, 0]
    if path.endswith(".class_embed"):
        return value[:, 0]
    return value


@dataclass(frozen=True)
class Entry:
    """One tensor of the original and the slice of a parameter that it corresponds to.

    Attributes:
      name: name of the tensor; path: dotted path of the parameter.
      layer: index along the parameter's leading axis; None if the whole parameter is one tensor.
      shape: shape of the slice; torch_shape: shape of the tensor.
      dtype: dtype of the parameter.
    """

    name: str
    path: str
    layer: int | None
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]
    dtype: np.dtype

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        """Converts a tensor of `torch_shape` to the slice of the parameter."""
        return _from_torch_layout(self.path, value, self.shape)

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """Converts a slice of `shape` to the tensor."""
        return _to_torch_layout(self.path, value)

    @property
    def packed_rows(self) -> tuple[int, int, int] | None:
        """The rows of the tensor that make queries, keys and values; None for a tensor of anything else."""
        if not self.path.endswith((*_PACKED, ".qkv.bias")):
            return None
        kv_heads, members, dim = self.shape[-3:]
        return kv_heads * (members - 2) * dim, kv_heads * dim, kv_heads * dim


def entries(expected: Params, *, additions: bool = False) -> list[Entry]:
    """Lists every tensor of a model, those of one parameter consecutively; no arrays are needed.

    Args:
      expected: a tree of arrays or ShapeDtypeStructs, e.g. from `parameters.abstract`.
      additions: whether the model may have tensors that the originals do not have, for files of other implementations.

    Raises:
      ValueError: a flow whose blocks share layers; without `additions`, a noise-conditioned flow, or one with classes
        of tokens, adaptive norms, or layer norms of queries and keys.
    """
    flat = flatten(expected)
    if any(path.startswith("shared.") for path in flat):
        which = "a file by a table of names" if additions else "files of the PyTorch originals"
        raise ValueError(f"flow.shared_layers must be 0 for {which}, which cannot hold shared layers")
    if not additions:
        _check_original(flat)
    result = []
    for path, leaf in flat.items():
        name = _torch_name(path, _is_gated(flat, path))
        layers: Iterable[int | None] = range(leaf.shape[0]) if "{layer}" in name else (None,)
        for layer in layers:
            shape = tuple(leaf.shape) if layer is None else tuple(leaf.shape[1:])
            torch_shape = _torch_shape(path, shape)
            named = name if layer is None else name.format(layer=layer)
            result.append(Entry(named, path, layer, shape, torch_shape, np.dtype(leaf.dtype)))
    return result


def _check_original(flat: Mapping[str, Any]) -> None:
    """Raises ValueError for parameters that the originals do not have."""
    if any(".level_embed." in path for path in flat):
        raise ValueError("flow.noise_levels must be None for files of the PyTorch originals, which have no such flows")
    if any(".token_embed." in path for path in flat):
        raise ValueError("flow.token_classes must be 0 for files of the PyTorch originals, which have no such flows")
    if any(".norm.modulation." in path for path in flat):
        raise ValueError("flow.norm must not be 'adaptive' for files of the PyTorch originals, which have no such norm")
    if any(path.endswith(".query_norm.bias") for path in flat):
        raise ValueError("flow.qk_norm must not be 'layer' for files of the PyTorch originals, which have no such norm")


def holds_scales(names: Iterable[str]) -> bool:
    """Whether tensors of these names have quantised weights."""
    return any(name.endswith(SCALE) for name in names)


def scheme_of(tensors: Mapping[str, LazyTensor]) -> Quantisation | None:
    """How quantised weights are stored, by the first of them; None where there is none, or its dtype is another."""
    scales = sorted(name for name in tensors if name.endswith(SCALE))
    weight = tensors.get(scales[0].removesuffix(SCALE) + ".weight") if scales else None
    return None if weight is None else scheme_of_dtype(weight.dtype)


def is_ignored(name: str) -> bool:
    """Whether a tensor without a parameter is a buffer that nothing reads."""
    # STARFlow files contain TARFlow's buffer `var`, which STARFlow does not use.
    return bool(_UNUSED.search(name)) or name == "var"


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """Converts parameters to the original's named tensors (linear weights [out, in], one tensor per layer).

    The parameters do not say whether a flow has SwiGLU, sinusoidal positions, orders or a pixel map, which the
    originals do not have either: `starflow port`, which reads the configuration, refuses these.

    Raises:
      ValueError: see `entries`.
    """
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    return {
        entry.name: entry.to_torch(flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer])
        for entry in entries(params)
    }


def from_torch(tensors: Mapping[str, np.ndarray | LazyTensor], expected: Params) -> Params:
    """Converts the original's named tensors to parameters.

    Args:
      tensors: name to array, as in the original's files, or to a tensor of a file, which is read here.
      expected: the tree to fill, e.g. of ShapeDtypeStructs from `parameters.abstract`.

    Raises:
      ValueError: tensors are missing, unexpected or of the wrong shape; the message lists all of them.
    """
    expected_entries = entries(expected)
    problems = misfits(tensors, expected_entries)
    if problems:
        raise ValueError(f"the tensors do not fit the configuration: {'; '.join(problems)}")
    pieces: dict[str, list[np.ndarray]] = {}
    for entry in expected_entries:
        pieces.setdefault(entry.path, []).append(entry.from_torch(_values(tensors[entry.name])))
    stacked = {entry.path for entry in expected_entries if entry.layer is not None}
    flat = {path: np.stack(parts) if path in stacked else np.asarray(parts[0]) for path, parts in pieces.items()}
    return unflatten(flat)


def _values(tensor: np.ndarray | LazyTensor) -> np.ndarray:
    return tensor.read() if isinstance(tensor, LazyTensor) else np.asarray(tensor)


def misfits(tensors: Mapping[str, Any], expected: Sequence[Entry]) -> list[str]:
    """Describes each tensor that is missing, unexpected or of another shape; values are not read."""
    problems = []
    for entry in expected:
        if entry.name not in tensors:
            problems.append(f"missing {entry.name} {entry.torch_shape}")
        elif tuple(tensors[entry.name].shape) != entry.torch_shape:
            shape = tuple(tensors[entry.name].shape)
            problems.append(f"{entry.name} has shape {shape}, expected {entry.torch_shape}")
    names = {entry.name for entry in expected}
    unexpected = sorted(name for name in tensors if name not in names and not is_ignored(name))
    return problems + [f"unexpected {name} {tuple(tensors[name].shape)}" for name in unexpected]
