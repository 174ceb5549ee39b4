"""A module as a plain nested dict of arrays: what optimizers, checkpoints and jit boundaries handle.

A module passed whole through `jit` costs milliseconds a call in pytree callbacks; a dict does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

Params = dict[str, Any]


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A module as its hashable definition and its parameters, a nested dict with string keys."""
    definition, state = nnx.split(module)
    return definition, _with_keys(nnx.to_pure_dict(state), str)


def merge(definition: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The inverse of `split`."""
    return nnx.merge(definition, _with_keys(params, lambda k: int(k) if k.isdecimal() else k))


def _with_keys(tree: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {convert(k): _with_keys(v, convert) for k, v in tree.items()}
    return tree
