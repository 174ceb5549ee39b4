"""The modular scale transform: an affine map of integers that loses nothing (iFlow, arXiv 2111.00965, section 3).

On grids of spacing d (in) and e (out) the map z = (x - mean) / scale multiplies a position by rho = d / (scale e). With
rho = R / S for integers R and S = 2^12, an integer x becomes z and a remainder by way of a finer integer v:

    v = R x + O + r,    r popped from the stack, uniform in 0 .. R - 1,    O = rint(R (origin - mean) / d)
    z = v // S,         v mod S pushed onto the stack, uniform in 0 .. S - 1.

The net length log2 S - log2 R is -log2 |dz/dx| up to the rounding of R. The offset O has the resolution of v, so that
means are not rounded to the grid. Nothing is lost for any R of at least 1: a prediction that is far off, or not
finite, costs bits and no pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.compression.noise_code import NoiseCode
from starflow_jax.compression.rans import AnsStack

_SCALE_BITS = 12  # S = 2^12
_S = 1 << _SCALE_BITS
_LARGEST = 1 << 22  # R; sizes of uniform symbols are at most 2^24
# Of a number in a stream, so that it can become a float. A block makes it at most 2^10 times larger, plus 2^50.
_MOST = 1 << 960
_FARTHEST = float(1 << 40)  # |O|, in units of the incoming grid


@dataclasses.dataclass(frozen=True)
class Grid:
    """Integers n that stand for the real numbers (n + 1/2) spacing + origin.

    Attributes:
      spacing: above 0.
      origin: of each channel, [c] float64.
    """

    spacing: float
    origin: np.ndarray

    def real(self, values: np.ndarray) -> np.ndarray:
        """What integers [..., c] stand for, float32, cut off at 1e4, so that what networks compute is finite."""
        real = (values.astype(np.float64) + 0.5) * self.spacing + self.origin
        return np.clip(real, -1e4, 1e4).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ScaledGrid:
    """R and O for each number of an array, int64."""

    factors: np.ndarray
    offsets: np.ndarray


def scaled_grid(mean: np.ndarray, scale: np.ndarray, before: Grid, after: float) -> ScaledGrid:
    """R and O of the map (x - mean) / scale from a grid to another.

    Only operations that IEEE 754 defines to the last bit are used, so equal float32 inputs give equal integers
    anywhere.

    Args:
      mean, scale: float32 [..., c]; before: the grid of x; after: the spacing of the grid of z, whose origin is 0.
    """
    with np.errstate(all="ignore"):
        ratio = before.spacing / (scale.astype(np.float64) * after)
        factors = np.clip(np.nan_to_num(np.rint(ratio * _S), nan=1.0), 1.0, _LARGEST)
        shift = np.nan_to_num((before.origin - mean.astype(np.float64)) / before.spacing, nan=0.0)
        offsets = np.rint(np.clip(shift, -_FARTHEST, _FARTHEST) * factors)
    return ScaledGrid(factors.astype(np.int64), offsets.astype(np.int64))


def push_scaled(stack: AnsStack, values: np.ndarray, scaled: ScaledGrid, noise: NoiseCode | None) -> np.ndarray:
    """Maps x to z, last entry first, and pushes the remainders; pushes each z as noise, too, where `noise` is given.

    Args:
      values: integers of any shape; scaled: of that shape.

    Returns:
      z, integers of that shape.
    """
    triples = (a.reshape(-1).tolist() for a in (values, scaled.factors, scaled.offsets))
    results = []
    for x, factor, offset in reversed(list(zip(*triples, strict=True))):
        v = factor * x + offset + stack.pop_uniform(factor)
        z = v >> _SCALE_BITS
        stack.push_bits(v & (_S - 1), _SCALE_BITS)
        if noise is not None:
            noise.push(stack, z)
        results.append(z)
    return integers(results[::-1], values.shape)


def pop_scaled(stack: AnsStack, noise: NoiseCode | np.ndarray, scaled: ScaledGrid) -> np.ndarray:
    """The inverse of `push_scaled`, first entry first: x, of the shape of `scaled`.

    Args:
      noise: the code of z, or z itself where it is known.

    Raises:
      ValueError: the stream leads to a number beyond all that `push_scaled` can have coded.
    """
    known = None if isinstance(noise, NoiseCode) else noise.reshape(-1).tolist()
    results = []
    pairs = zip(scaled.factors.reshape(-1).tolist(), scaled.offsets.reshape(-1).tolist(), strict=True)
    for index, (factor, offset) in enumerate(pairs):
        z = noise.pop(stack) if known is None else known[index]  # type: ignore[union-attr]
        v = (z << _SCALE_BITS) | stack.pop_bits(_SCALE_BITS)
        x, remainder = divmod(v - offset, factor)
        if not -_MOST < x < _MOST:
            raise ValueError("the coded stream leads to a number that no image leads to: it is damaged")
        stack.push_uniform(remainder, factor)
        results.append(x)
    return integers(results, scaled.factors.shape)


def integers(values: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Integers as an array, of Python's own integers where 64 bits are too few."""
    try:
        return np.asarray(values, np.int64).reshape(shape)
    except OverflowError:
        return np.asarray(values, object).reshape(shape)
