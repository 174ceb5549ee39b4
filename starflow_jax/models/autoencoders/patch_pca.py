"""A linear autoencoder: the first principal components of image patches, each scaled to unit variance.

Among all linear maps to that number of channels it has the smallest mean squared error on the images it is fitted to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.models.autoencoders.protocol import AnyArray, Params

# Lower bound of the standard deviation: directions with almost no variance are not scaled to unit variance.
_LEAST_STD = 1e-4


@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """Maps patches of `patch` x `patch` pixels to `channels` values.

    The parameters are `mean` [d] and `basis` [d, channels] with orthonormal columns, where d = patch^2 C is the number
    of values of a patch in the order (row, column, colour); and `std` [channels].
    """

    patch: int
    pixel_channels: int
    channels: int

    def __post_init__(self):
        check_integer("patch", self.patch, minimum=1)
        check_integer("pixel_channels", self.pixel_channels, minimum=1)
        check_integer("channels", self.channels, minimum=1)
        check(self.channels <= self.dim, f"channels must be at most the {self.dim} of a patch, got {self.channels}")

    @property
    def dim(self) -> int:
        """Number of values of a patch."""
        return self.patch**2 * self.pixel_channels

    @property
    def stride(self) -> int:
        """Side of a patch."""
        return self.patch

    @property
    def frame_stride(self) -> int:
        """1."""
        return 1

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*B rows columns c"]:
        """[..., H, W, C] to [..., H / patch, W / patch, channels]."""
        *batch, height, width, _ = pixels.shape
        p = self.patch
        cells = pixels.reshape(-1, height // p, p, width // p, p, self.pixel_channels).transpose(0, 1, 3, 2, 4, 5)
        values = cells.reshape(-1, self.dim) - params["mean"]
        latents = jnp.matmul(values, params["basis"], precision="highest") / params["std"]
        return latents.reshape(*batch, height // p, width // p, self.channels)

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*B H W C"]:
        """[..., h, w, channels] to [..., h patch, w patch, C]."""
        *batch, rows, columns, _ = latents.shape
        p = self.patch
        scaled = latents.reshape(-1, self.channels) * params["std"]
        values = jnp.matmul(scaled, params["basis"].T, precision="highest") + params["mean"]
        cells = values.reshape(-1, rows, columns, p, p, self.pixel_channels).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(*batch, rows * p, columns * p, self.pixel_channels)


def fit_patch_pca(
    images: Iterable[Float[np.ndarray, "*B H W C"]], patch: int, channels: int
) -> tuple[PatchPCA, dict[str, Float[np.ndarray, "..."]]]:
    """Fits the autoencoder to images.

    Args:
      images: arrays float [..., H, W, C] in [-1, 1]; H and W are multiples of `patch`, and C is the same for all.
      patch, channels: see `PatchPCA`.

    Returns:
      The autoencoder and its float32 parameters.

    Raises:
      ValueError: there are no images, or not more patches than values of a patch.
    """
    total, square, count, colours = np.zeros(()), np.zeros(()), 0, 0
    for image in images:
        *_, height, width, colours = image.shape
        cells = image.reshape(-1, height // patch, patch, width // patch, patch, colours).transpose(0, 1, 3, 2, 4, 5)
        values = cells.reshape(-1, patch**2 * colours).astype(np.float64)
        total, square, count = total + values.sum(0), square + values.T @ values, count + len(values)
    check(count > 0, "images must contain at least one patch, got none")
    autoencoder = PatchPCA(patch, colours, channels)
    check(count > autoencoder.dim, f"images must contain more than {autoencoder.dim} patches of {patch}, got {count}")
    mean = total / count
    variances, vectors = np.linalg.eigh(square / count - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, :channels]
    # The sign of a component is arbitrary: its largest entry is made positive, so that the fit is reproducible.
    basis = basis * np.sign(basis[np.argmax(np.abs(basis), axis=0), np.arange(channels)])
    std = np.sqrt(np.maximum(variances[::-1][:channels], _LEAST_STD**2))
    params = {"mean": mean, "basis": basis, "std": std}
    return autoencoder, {name: value.astype(np.float32) for name, value in params.items()}
