"""Parameters of modules as PyTorch lays them out: names joined by dots, channels of the output first.

A kernel [*window, inputs, outputs] is there a weight [outputs, inputs, *window]; the scale of a norm is a weight, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.tensor_formats.folders import Tensors

_LEAVES = {"kernel": "weight", "scale": "weight"}
_SHOWN = 3  # names in a sentence


def from_tensors(expected: Params, tensors: Tensors, name: Callable[[str], str] = str) -> Params:
    """Parameters laid out as `expected`, float32, of tensors that are those and no others.

    Args:
      expected: nested, of ShapeDtypeStructs or arrays.
      tensors: of any floating dtype.
      name: of the tensor where the path joined by dots is another ("encoder.conv_in.weight").

    Raises:
      ValueError: tensors that are missing, not known, of another shape, or not finite; all of a kind are named.
    """
    wanted = {name(_dotted(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((wanted, tensors), (tensors, wanted)))
    check(not missing, f"tensors must hold {_some(missing)}, and do not")
    check(not unknown, f"tensors must be those of the configuration, got also {_some(unknown)}")
    shapes = {one: _torch_shape(leaf.shape) for one, leaf in wanted.items()}
    wrong = [
        f"{one} {list(tensors[one].shape)} for {list(shapes[one])}"
        for one in wanted
        if not _fits(tensors[one], shapes[one])
    ]
    check(not wrong, f"tensors must have the shapes of the configuration, got {_some(wrong)}")
    bad = [one for one in wanted if not np.isfinite(tensors[one].astype(np.float32)).all()]
    check(not bad, f"tensors must hold finite numbers, and {_some(bad)} do not")

    def value(path: Any, leaf: Any) -> np.ndarray:
        one = name(_dotted(path))
        return from_torch(tensors[one].astype(np.float32).reshape(shapes[one]))

    return jax.tree_util.tree_map_with_path(value, dict(expected))


def to_tensors(params: Params, name: Callable[[str], str] = str) -> dict[str, np.ndarray]:
    """The inverse of `from_tensors`."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return {name(_dotted(path)): to_torch(np.asarray(leaf)) for path, leaf in leaves}


def from_torch(weight: np.ndarray) -> np.ndarray:
    """[outputs, inputs, *window] to [*window, inputs, outputs]; vectors as they are."""
    return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2))) if weight.ndim > 1 else weight


def to_torch(kernel: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch`."""
    return np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))) if kernel.ndim > 1 else kernel


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else tuple(shape)


def _fits(tensor: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether shapes are equal, or differ in a window of one place: old files hold dense layers as convolutions."""
    found = tensor.shape
    return found == shape or (len(found) > 2 and found[:2] == shape and set(found[2:]) == {1})


def _dotted(path: Any) -> str:
    *folders, leaf = (str(part.key) for part in path)
    return ".".join([*folders, _LEAVES.get(leaf, leaf)])


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
