"""Uniform dequantisation, and its relation to bits/dim.

A pixel takes the integer values `0 .. levels - 1`. Spreading each over its unit interval and scaling to
[-1, 1),

    x = 2 (v + u) / levels - 1,    u uniform in [0, 1),

gives a density whose logarithm, averaged over `u`, is at most the log-probability of the integers. Hence
bits/dim in units of the integer grid,

    bits/dim = (-log p(x) + D log(levels / 2)) / (D log 2),

bound the length of a lossless code from above and do not depend on the scaling. 8-bit images have
`levels = 256`; a uniform density scores log2(levels). The functions accept NumPy and JAX arrays.
"""

from __future__ import annotations

from typing import Any

from starflow_jax.flows.bits import bits_per_dim

__all__ = ["bits_per_dim", "dequantise", "quantise"]

Array = Any  # numpy.ndarray or jax.Array: used by the loader and in the jitted step


def dequantise(images: Array, noise: Array, levels: int) -> Array:
    """Integer pixels to continuous values in [-1, 1) (1 itself only by rounding).

    Args:
      images: integers of any shape, values in `0 .. levels - 1`.
      noise: floating point of the same shape, uniform in [0, 1); 0.5 everywhere gives the cells' centres.
      levels: number of levels of a pixel.

    Returns:
      Array of that shape and of `noise`'s dtype.
    """
    return (images.astype(noise.dtype) + noise) * (2.0 / levels) - 1.0


def quantise(x: Array, levels: int) -> Array:
    """Continuous values to integers: the inverse of `dequantise` for any noise.

    Noise within a rounding error of 0 or 1 may give the neighbouring level.

    Args:
      x: floating point of any shape; values outside [-1, 1) go to the nearest level.
      levels: number of levels of a pixel, at most 256.

    Returns:
      uint8 array of that shape, values in `0 .. levels - 1`.
    """
    return ((x + 1.0) * (levels / 2.0)).clip(0, levels - 1).astype("uint8")
