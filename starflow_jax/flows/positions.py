"""Fixed positions of a block's slots: sines and cosines at geometrically spaced frequencies (arXiv 1706.03762)."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

_LARGEST_PERIOD = 1e4


def sinusoidal_positions(slots: int, width: int) -> Float[Array, "N D"]:
    """The vectors of slots 0 to N - 1, float32: sines of width / 2 frequencies from 1 to 1e-4, then their cosines."""
    half = width // 2
    frequencies = jnp.exp(-math.log(_LARGEST_PERIOD) / half * jnp.arange(half))
    angles = jnp.arange(slots)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
