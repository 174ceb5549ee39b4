"""Fingerprints of networks: their outputs on fixed images, reduced to a few numbers that agree between devices.

The code of a function does not determine its weights, so stored features are matched to a network by its outputs.
Rounding differs between devices; fingerprints are therefore compared with a tolerance, which a hash would not allow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_DIRECTIONS = 3
_TOLERANCE = 1e-3  # relative to the root mean square: above rounding errors, below the effect of other weights
_CELL = 4

# For every array [root mean square, projections on fixed random directions ...].
Fingerprint = list[list[float]]


def fixed_images(shape: tuple[int, ...]) -> np.ndarray:
    """Two images uint8 [2, H, W, C] that never change: noise of single pixels, and noise of cells of 4 x 4 pixels.

    Args:
      shape: (H, W, C).
    """
    height, width, channels = shape
    random = np.random.RandomState(0)  # NumPy guarantees that its numbers never change
    fine = random.randint(0, 256, shape)
    cells = random.randint(0, 256, (-(-height // _CELL), -(-width // _CELL), channels))
    coarse = cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)[:height, :width]
    return np.stack([fine, coarse]).astype(np.uint8)


def fingerprint(*arrays: np.ndarray) -> Fingerprint:
    """The fingerprint of arrays [n, ...] of finite values, to five digits."""
    entries = []
    for array in arrays:
        rows = np.asarray(array, np.float32).reshape(len(array), -1)
        random = np.random.RandomState(0)
        directions = random.standard_normal((rows.shape[1], _DIRECTIONS)) / np.sqrt(max(rows.size, 1))
        weights = random.standard_normal(len(rows)).astype(np.float32)  # avoids a float64 copy of large arrays
        size = float(np.linalg.norm(rows)) / np.sqrt(max(rows.size, 1))
        entries.append([float(f"{value:.5g}") for value in (size, *((weights @ rows) @ directions))])
    return entries


def matching_fingerprint(computed: Fingerprint, stored: Any) -> Fingerprint:
    """`stored`, as read from a file, where it equals `computed` up to rounding; otherwise `computed`."""
    return stored if _close(computed, stored) else computed


def _close(computed: Fingerprint, stored: Any) -> bool:
    if not isinstance(stored, list) or len(stored) != len(computed):
        return False
    for entry, other in zip(computed, stored, strict=True):
        if not isinstance(other, list) or len(other) != len(entry):
            return False
        if not all(isinstance(value, float | int) for value in other):
            return False
        if any(not abs(a - b) <= _TOLERANCE * entry[0] for a, b in zip(entry, other, strict=True)):
            return False
    return True
