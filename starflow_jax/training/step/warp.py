"""Data augmentation by smooth random distortions of training images.

The points of a 3x3 control grid over the image (corners, middles of the sides, centre) are displaced independently at
random, and the displacement of the pixels between them is interpolated bilinearly. One number, the standard deviation
of the displacements in pixels, controls how much an image is shifted, rotated, stretched, sheared and bent.

Interpolated intensities lie between the integer levels that exact bits/dim needs. They are rounded up or down at
random, which preserves the mean of a pixel and keeps the images integers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

CONTROL_POINTS = 3  # along each side; the fewest that can bend a stroke


def random_warp(key: jax.Array, images: jax.Array, levels: int, probability: float, strength: float) -> jax.Array:
    """Distorts each image with some probability, by its own displacement field.

    Pixels from outside of the image are 0. Time and memory grow with the cube of the side, so this is for small
    images.

    Args:
      key: of the choice, the fields and the rounding.
      images: integers [B, H, W, C], values in `0 .. levels - 1`.
      levels: number of values a pixel can take.
      probability: of distorting an image, 0 to 1.
      strength: standard deviation of the displacement of a control point along each axis, in pixels.

    Returns:
      Array of the same shape, dtype and range.
    """
    choice_key, field_key, rounding_key = jax.random.split(key, 3)
    batch, height, width, _ = images.shape
    field = displacements(field_key, batch, height, width, strength)
    warped = resample(images.astype(jnp.float32), field)
    rounded = jnp.floor(warped + jax.random.uniform(rounding_key, warped.shape))
    # The cubic kernel overshoots beside sharp edges.
    rounded = jnp.clip(rounded, 0, levels - 1).astype(images.dtype)
    chosen = jax.random.uniform(choice_key, (batch, 1, 1, 1)) < probability
    return jnp.where(chosen, rounded, images)


def displacements(key: jax.Array, batch: int, height: int, width: int, strength: float) -> jax.Array:
    """Smooth random displacement fields float32 [B, H, W, 2], down and right, in pixels."""
    moves = strength * jax.random.normal(key, (batch, CONTROL_POINTS, CONTROL_POINTS, 2))
    return jnp.einsum("bijc,hi,wj->bhwc", moves, _upsampling(height), _upsampling(width))


def _upsampling(side: int) -> np.ndarray:
    """Weights float32 [side, CONTROL_POINTS] of linear interpolation between equidistant control points."""
    positions = np.linspace(0, CONTROL_POINTS - 1, side)[:, None] if side > 1 else np.ones((1, 1))
    return np.maximum(0, 1 - np.abs(positions - np.arange(CONTROL_POINTS))).astype(np.float32)


def resample(images: jax.Array, field: jax.Array) -> jax.Array:
    """Images resampled at displaced positions by separable cubic interpolation.

    Args:
      images: float32 [B, H, W, C].
      field: displacements float32 [B, H, W, 2], down and right, in pixels.

    Returns:
      float32 [B, H, W, C]; a field of zeros gives the images themselves.
    """
    rows, columns = jnp.arange(field.shape[1]), jnp.arange(field.shape[2])
    down = cubic_kernel((rows[:, None] + field[..., 0])[..., None] - rows)  # [B, H, W, H]
    right = cubic_kernel((columns + field[..., 1])[..., None] - columns)  # [B, H, W, W]
    # Sums instead of matrix products: every pixel has its own weights, and sums compile to plain loops.
    along_columns = jnp.sum(down[..., None, None] * images[:, None, None], axis=3)  # [B, H, W, W, C]
    return jnp.sum(right[..., None] * along_columns, axis=3)


def cubic_kernel(distance: jax.Array) -> jax.Array:
    """Keys' cubic convolution kernel (a = -1/2): 1 at 0, 0 at other integers. Linear weights blur strokes."""
    d = jnp.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))
