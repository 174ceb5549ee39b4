"""Converts parameters to and from the layout of PyTorch: dotted names, output channels first.

In PyTorch a kernel [*window, inputs, outputs] is a weight [outputs, inputs, *window], and a norm's scale is a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.tensor_formats.tensor_folders import Tensors

_LEAVES = {"kernel": "weight", "scale": "weight"}
_MAX_NAMED = 3  # names in a message


def from_tensors(expected: Params, tensors: Tensors, name: Callable[[str], str] = str) -> Params:
    """Float32 parameters with the structure of `expected` from exactly matching tensors.

    Args:
      expected: nested ShapeDtypeStructs or arrays.
      tensors: tensors by name, of any floating-point dtype.
      name: maps the dotted path of a parameter ("encoder.conv_in.weight") to the name of its tensor.

    Raises:
      ValueError: tensors are missing, unexpected, of another shape, or not finite; the message names them.
    """
    leaves = {name(_dotted(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((leaves, tensors), (tensors, leaves)))
    check(not missing, f"tensors must contain {_some(missing)}, and do not")
    check(not unknown, f"tensors must be those of the configuration, got additionally {_some(unknown)}")
    shapes = {key: _torch_shape(leaf.shape) for key, leaf in leaves.items()}
    wrong = [
        f"{key} {list(tensors[key].shape)} for {list(shapes[key])}"
        for key in leaves
        if not _fits(tensors[key], shapes[key])
    ]
    check(not wrong, f"tensors must have the shapes of the configuration, got {_some(wrong)}")
    bad = [key for key in leaves if not np.isfinite(tensors[key].astype(np.float32)).all()]
    check(not bad, f"tensors must contain finite numbers, and {_some(bad)} do not")

    def value(path: Any, leaf: Any) -> np.ndarray:
        key = name(_dotted(path))
        return from_torch(tensors[key].astype(np.float32).reshape(shapes[key]))

    return jax.tree_util.tree_map_with_path(value, dict(expected))


def to_tensors(params: Params, name: Callable[[str], str] = str) -> dict[str, Float[np.ndarray, "..."]]:
    """The inverse of `from_tensors`."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return {name(_dotted(path)): to_torch(np.asarray(leaf)) for path, leaf in leaves}


def from_torch(weight: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """[outputs, inputs, *window] to [*window, inputs, outputs]; vectors are unchanged."""
    return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2))) if weight.ndim > 1 else weight


def to_torch(kernel: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The inverse of `from_torch`."""
    return np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))) if kernel.ndim > 1 else kernel


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _fits(tensor: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the shapes are equal, up to a 1x1 window: old files store dense layers as convolutions."""
    actual = tensor.shape
    return actual == shape or (len(actual) > 2 and actual[:2] == shape and set(actual[2:]) == {1})


def _dotted(path: Any) -> str:
    *folders, leaf = (str(part.key) for part in path)
    return ".".join([*folders, _LEAVES.get(leaf, leaf)])


def _some(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
