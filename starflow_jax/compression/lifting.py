"""An orthogonal map of integers that loses nothing: rotations of two channels, each as three lifting steps.

A rotation by an angle t is the product of three shears,

    a <- a - tan(t / 2) b,    b <- b + sin(t) a,    a <- a - tan(t / 2) b,

each of which is undone exactly when its increment is rounded (Daubechies and Sweldens, 1998). The result is the
orthogonal map up to a few units of the grid.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True)
class LiftedBasis:
    """x -> x @ basis on integers, as rotations of pairs of channels and signs.

    Attributes:
      rotations: (i, j, angle), in the order in which they are applied, after the signs.
      signs: of each channel, [c] of 1 and -1.
    """

    rotations: tuple[tuple[int, int, float], ...]
    signs: np.ndarray

    @classmethod
    def of(cls, basis: np.ndarray) -> LiftedBasis:
        """The steps of an orthogonal matrix [c, c]."""
        remaining, rotations = basis.T.astype(np.float64), []
        for column in range(len(basis)):
            for row in range(column + 1, len(basis)):
                above, below = remaining[column, column], remaining[row, column]
                if abs(below) < _NEGLIGIBLE:
                    continue
                # The rotation of less than a right angle that makes the lower entry 0.
                angle = math.atan(below / above) if above else math.copysign(math.pi / 2, below)
                cosine, sine = math.cos(angle), math.sin(angle)
                pair = remaining[[column, row]]
                remaining[[column, row]] = np.asarray([[cosine, sine], [-sine, cosine]]) @ pair
                rotations.append((column, row, angle))
        # rotations @ basis.T = signs, so basis.T is the product of the inverse rotations, the last one first.
        return cls(tuple(reversed(rotations)), np.sign(np.diag(remaining)).astype(np.int64))

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Integers [..., c] times the basis, rounded, int64."""
        channels = [values[..., index] * sign for index, sign in enumerate(self.signs.tolist())]
        for i, j, angle in self.rotations:
            half, sine = math.tan(angle / 2), math.sin(angle)
            channels[i] = channels[i] - _rounded(half, channels[j])
            channels[j] = channels[j] + _rounded(sine, channels[i])
            channels[i] = channels[i] - _rounded(half, channels[j])
        return np.stack(channels, axis=-1)

    def backward(self, values: np.ndarray) -> np.ndarray:
        """The exact inverse of `forward`."""
        channels = [values[..., index] for index in range(values.shape[-1])]
        for i, j, angle in reversed(self.rotations):
            half, sine = math.tan(angle / 2), math.sin(angle)
            channels[i] = channels[i] + _rounded(half, channels[j])
            channels[j] = channels[j] - _rounded(sine, channels[i])
            channels[i] = channels[i] + _rounded(half, channels[j])
        return np.stack([c * sign for c, sign in zip(channels, self.signs.tolist(), strict=True)], axis=-1)


def _rounded(factor: float, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a damaged stream leads to numbers of more than 64 bits
        return np.rint(factor * values.astype(np.float64)).astype(np.int64)
