"""The Inception-v3 of FID: the network of the TensorFlow graph of 2015-12-05, with 1008 classes.

Architecture: Szegedy et al., arXiv 1512.00567. It differs from the one that other frameworks ship in its weights, its
1008 instead of 1000 classes, average pooling that leaves padding out of the mean, and maximum pooling in the last block
(`Mixed_7c`). Batch norm is folded into the convolutions (`inception_weights`). Names of modules are those of the
tensors that PyTorch packages publish. Arrays are [B, H, W, C].
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starflow_jax.core.choices import Resize
from starflow_jax.nn.convolution import conv, dense

FEATURES, CLASSES = 2048, 1008
SIDE = 299  # rows and columns of the input
_WHOLE = ((0, 0), (0, 0))
_FLOAT = "float32"


class Inception(nnx.Module):
    """Images float32 [B, 299, 299, 3], about [-1, 1], to pooled features [B, 2048] and logits [B, 1008].

    Logits are without the bias of the last layer, as the Inception Score is usually computed. Smaller inputs of at
    least 75 rows and columns are accepted.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, rngs, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, rngs, whole=True)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, rngs)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1, rngs)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, rngs, whole=True)
        self.Mixed_5b = _BlockA(192, 32, rngs)
        self.Mixed_5c = _BlockA(256, 64, rngs)
        self.Mixed_5d = _BlockA(288, 64, rngs)
        self.Mixed_6a = _BlockB(288, rngs)
        self.Mixed_6b = _BlockC(128, rngs)
        self.Mixed_6c = _BlockC(160, rngs)
        self.Mixed_6d = _BlockC(160, rngs)
        self.Mixed_6e = _BlockC(192, rngs)
        self.Mixed_7a = _BlockD(rngs)
        self.Mixed_7b = _BlockE(1280, "mean", rngs)
        self.Mixed_7c = _BlockE(2048, "maximum", rngs)
        self.fc = dense(FEATURES, CLASSES, rngs, _FLOAT)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = jnp.mean(x, axis=(1, 2))
        return features, jnp.matmul(features, self.fc.kernel[...], precision="highest")


def network_input(images: jax.Array, resize: Resize = "half-pixel") -> jax.Array:
    """The input float32 [B, 299, 299, 3] for images uint8 [B, H, W, C] with C of 3 or 1 (grey).

    Args:
      resize: how pixel i of n is interpolated among N input pixels, and the scale of 0 to 255. "half-pixel" is linear
        without antialiasing at (i + 1/2) N / n - 1/2, scaled to x / 127.5 - 1, as pytorch-fid does; "tensorflow" is
        linear without antialiasing at i N / n, scaled to (x - 128) / 128, as the graph of 2015 and torch-fidelity do;
        "clean" is bicubic with antialiasing (Pillow's, without rounding), scaled to (x - 128) / 128, as clean-fid does.
    """
    weights = _cubic if resize == "clean" else functools.partial(_linear, resize=resize)
    down, along = (jnp.asarray(weights(side)) for side in images.shape[1:3])
    x = images.astype(jnp.float32)
    x = x / 127.5 - 1.0 if resize == "half-pixel" else (x - 128.0) / 128.0
    x = jnp.einsum("ah,bhwc->bawc", down, x, precision="highest")
    x = jnp.einsum("aw,bhwc->bhac", along, x, precision="highest")
    if resize == "clean":  # cubic interpolation overshoots
        x = jnp.clip(x, -1.0, 127.0 / 128.0)
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def _cubic(side: int) -> np.ndarray:
    """Weights float32 [299, side] of Keys' cubic kernel (a = -1/2), widened for downscaling and cut at the border."""
    scale = side / SIDE
    centres = (np.arange(SIDE) + 0.5) * scale
    wide = max(scale, 1.0)
    distance = np.abs(np.arange(side) + 0.5 - centres[:, None]) / wide
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _linear(side: int, resize: Resize) -> np.ndarray:
    """Weights float32 [299, side] of linear interpolation; positions outside repeat the border."""
    positions = np.arange(SIDE) * (side / SIDE)
    if resize == "half-pixel":
        positions += 0.5 * side / SIDE - 0.5
    pixels = np.arange(side)
    return np.stack([np.interp(positions, pixels, unit) for unit in np.eye(side)], axis=1).astype(np.float32)


class _Unit(nnx.Module):
    """Convolution, batch norm (folded into it), ReLU; without padding where `whole` is set or there is a stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        window: int | tuple[int, int],
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        whole: bool = False,
    ):
        padding = _WHOLE if whole or stride > 1 else None
        self.conv = conv(inputs, outputs, window, rngs, _FLOAT, stride=stride, padding=padding)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.conv(x))


class _BlockA(nnx.Module):
    def __init__(self, inputs: int, pooled: int, rngs: nnx.Rngs):
        self.branch1x1 = _Unit(inputs, 64, 1, rngs)
        self.branch5x5_1 = _Unit(inputs, 48, 1, rngs)
        self.branch5x5_2 = _Unit(48, 64, 5, rngs)
        self.branch3x3dbl_1 = _Unit(inputs, 64, 1, rngs)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, rngs)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, rngs)
        self.branch_pool = _Unit(inputs, pooled, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _joined(self.branch1x1(x), five, three, self.branch_pool(_mean(x)))


class _BlockB(nnx.Module):
    """Halves rows and columns."""

    def __init__(self, inputs: int, rngs: nnx.Rngs):
        self.branch3x3 = _Unit(inputs, 384, 3, rngs, stride=2)
        self.branch3x3dbl_1 = _Unit(inputs, 64, 1, rngs)
        self.branch3x3dbl_2 = _Unit(64, 96, 3, rngs)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, rngs, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _joined(self.branch3x3(x), double, _halved(x))


class _BlockC(nnx.Module):
    """Convolutions of size seven, factored into rows and columns."""

    def __init__(self, inner: int, rngs: nnx.Rngs):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Unit(768, 192, 1, rngs)
        self.branch7x7_1 = _Unit(768, inner, 1, rngs)
        self.branch7x7_2 = _Unit(inner, inner, row, rngs)
        self.branch7x7_3 = _Unit(inner, 192, column, rngs)
        self.branch7x7dbl_1 = _Unit(768, inner, 1, rngs)
        self.branch7x7dbl_2 = _Unit(inner, inner, column, rngs)
        self.branch7x7dbl_3 = _Unit(inner, inner, row, rngs)
        self.branch7x7dbl_4 = _Unit(inner, inner, column, rngs)
        self.branch7x7dbl_5 = _Unit(inner, 192, row, rngs)
        self.branch_pool = _Unit(768, 192, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return _joined(self.branch1x1(x), seven, double, self.branch_pool(_mean(x)))


class _BlockD(nnx.Module):
    """Halves rows and columns."""

    def __init__(self, rngs: nnx.Rngs):
        self.branch3x3_1 = _Unit(768, 192, 1, rngs)
        self.branch3x3_2 = _Unit(192, 320, 3, rngs, stride=2)
        self.branch7x7x3_1 = _Unit(768, 192, 1, rngs)
        self.branch7x7x3_2 = _Unit(192, 192, (1, 7), rngs)
        self.branch7x7x3_3 = _Unit(192, 192, (7, 1), rngs)
        self.branch7x7x3_4 = _Unit(192, 192, 3, rngs, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return _joined(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), _halved(x))


class _BlockE(nnx.Module):
    """Branches that end in a row convolution beside a column convolution."""

    def __init__(self, inputs: int, pooling: Literal["mean", "maximum"], rngs: nnx.Rngs):
        self.branch1x1 = _Unit(inputs, 320, 1, rngs)
        self.branch3x3_1 = _Unit(inputs, 384, 1, rngs)
        self.branch3x3_2a = _Unit(384, 384, (1, 3), rngs)
        self.branch3x3_2b = _Unit(384, 384, (3, 1), rngs)
        self.branch3x3dbl_1 = _Unit(inputs, 448, 1, rngs)
        self.branch3x3dbl_2 = _Unit(448, 384, 3, rngs)
        self.branch3x3dbl_3a = _Unit(384, 384, (1, 3), rngs)
        self.branch3x3dbl_3b = _Unit(384, 384, (3, 1), rngs)
        self.branch_pool = _Unit(inputs, 192, 1, rngs)
        self.pooling = pooling

    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _mean(x) if self.pooling == "mean" else nnx.max_pool(x, (3, 3), (1, 1), "SAME")
        return _joined(
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )


def _joined(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _halved(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


def _mean(x: jax.Array) -> jax.Array:
    """Mean over 3 x 3 windows; padding is left out of the mean."""
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
