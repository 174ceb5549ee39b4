"""Modules as plain nested dicts of arrays, for optimizers, checkpoints and jit boundaries.

Passing a module through `jit` costs milliseconds per call in pytree callbacks; passing a dict does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

Params = dict[str, Any]


def split(module: nnx.Module) -> tuple[nnx.GraphDef[Any], Params]:
    """Splits a module into its hashable definition and its parameters, a nested dict with string keys."""
    definition, state = nnx.split(module)
    return definition, _with_keys(nnx.to_pure_dict(state), str)


def merge(definition: nnx.GraphDef[Any], params: Mapping[str, Any]) -> Any:
    """The inverse of `split`."""
    return nnx.merge(definition, _with_keys(params, lambda k: int(k) if k.isdecimal() else k))


def drawn(abstract: Mapping[str, Any], key: PRNGKeyArray, std: float | None = None) -> Params:
    """Samples initial parameters in float32: kernels normal, scales 1, biases 0.

    Args:
      abstract: nested dict of ShapeDtypeStructs; the last key is the kind of a leaf ("kernel", "scale", "bias").
      key: of the random numbers.
      std: standard deviation of kernels; None means inputs^-1/2.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(dict(abstract))
    sizes = [math.prod(leaf.shape) if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    # All kernels are sampled by one call, which is one program to compile.
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])

    def value(name: str, shape: tuple[int, ...], part: jax.Array) -> jax.Array:
        if name == "kernel":
            return (math.prod(shape[:-1]) ** -0.5 if std is None else std) * part.reshape(shape)
        return jnp.ones(shape) if name == "scale" else jnp.zeros(shape)

    new = [value(path[-1].key, leaf.shape, part) for (path, leaf), part in zip(leaves, parts, strict=True)]
    params: Params = jax.tree.unflatten(structure, new)
    return params


def _with_keys(tree: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {convert(k): _with_keys(v, convert) for k, v in tree.items()}
    return tree
