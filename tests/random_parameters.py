"""Random parameters of any network, drawn on the host: a program that draws them takes seconds to compile."""

from typing import Any

import jax
import numpy as np


def random_params(abstract: Any, seed: int = 0) -> Any:
    """Values for a tree of ShapeDtypeStructs.

    Kernels keep the size of what they are applied to; gains are near 1 and biases near 0.
    """
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        value = rng.normal(size=leaf.shape)
        if len(leaf.shape) > 1:
            value *= np.prod(leaf.shape[:-1]) ** -0.5
        else:
            value = 0.1 * value + ("bias" not in jax.tree_util.keystr(path[-1:]))
        return jax.device_put(np.asarray(value, leaf.dtype))  # jnp.asarray would compile a program for every shape

    return jax.tree_util.tree_map_with_path(fill, abstract)
