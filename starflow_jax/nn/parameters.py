"""A module as a plain nested dict of arrays: what optimizers, checkpoints and jit boundaries handle.

A module passed whole through `jit` costs milliseconds a call in pytree callbacks; a dict does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Params = dict[str, Any]


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A module as its hashable definition and its parameters, a nested dict with string keys."""
    definition, state = nnx.split(module)
    return definition, _with_keys(nnx.to_pure_dict(state), str)


def merge(definition: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The inverse of `split`."""
    return nnx.merge(definition, _with_keys(params, lambda k: int(k) if k.isdecimal() else k))


def drawn(abstract: Mapping[str, Any], key: jax.Array, std: float | None = None) -> Params:
    """First values, float32: kernels normal, of variance 1 / inputs or of `std`; norms the identity, biases zero.

    Args:
      abstract: nested, of ShapeDtypeStructs; the last name says what a leaf is ("kernel", "scale", "bias").
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(dict(abstract))
    sizes = [math.prod(leaf.shape) if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    # One draw for all, which compiles at once.
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])

    def value(name: str, shape: tuple[int, ...], part: jax.Array) -> jax.Array:
        if name == "kernel":
            return (math.prod(shape[:-1]) ** -0.5 if std is None else std) * part.reshape(shape)
        return jnp.ones(shape) if name == "scale" else jnp.zeros(shape)

    new = [value(path[-1].key, leaf.shape, part) for (path, leaf), part in zip(leaves, parts, strict=True)]
    return jax.tree.unflatten(structure, new)


def _with_keys(tree: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {convert(k): _with_keys(v, convert) for k, v in tree.items()}
    return tree
