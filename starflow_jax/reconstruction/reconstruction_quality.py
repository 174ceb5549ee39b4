"""Quality of the reconstructions of held-out images from clean and noisy latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.video.psnr_ssim import psnr
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Quality of reconstructed images.

    Attributes:
      latents: "clean", or "noisy" with `noise_std` times a standard normal added.
      psnr: mean over images in dB, of pixels clipped to [-1, 1]; psnr_error: its standard error.
      square_error: mean square error of pixels in [-1, 1]; pictures: the number of images.
    """

    latents: str
    noise_std: float
    psnr: float
    psnr_error: float
    square_error: float
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def reconstructed(
    autoencoder: AutoencoderKL, params: Params, images: np.ndarray, noise_std: float, seed: int, batch_size: int
) -> np.ndarray:
    """Encodes and decodes images float32 [n, H, W, C] in [-1, 1]; the result is clipped to [-1, 1].

    The noise depends on the seed and the index of an image only, so that all decoders get the same latents.
    """
    key, size = jax.random.key(seed), min(batch_size, len(images))
    batches = []
    for first in range(0, len(images), size):
        indices = np.resize(np.arange(first, min(first + size, len(images))), size)  # pads the last batch
        decoded = _reconstruct(autoencoder, params, images[indices], key, indices, noise_std)
        batches.append(np.asarray(decoded)[: len(images) - first])
    return np.clip(np.concatenate(batches), -1.0, 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(
    autoencoder: AutoencoderKL,
    params: Params,
    pixels: jax.Array,
    key: jax.Array,
    indices: jax.Array,
    noise_std: jax.Array | float,
) -> jax.Array:
    latents = autoencoder.encode(params, pixels)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    noise = jax.vmap(lambda noise_key: jax.random.normal(noise_key, latents.shape[1:]))(keys)
    return autoencoder.decode(params, latents + jnp.float32(noise_std) * noise)


def quality(images: np.ndarray, decoded: np.ndarray, noise_std: float) -> Reconstruction:
    """Compares images [n, H, W, C] with their reconstructions."""
    decibels = psnr(decoded, images)
    return Reconstruction(
        latents="noisy" if noise_std else "clean",
        noise_std=noise_std,
        psnr=float(decibels.mean()),
        psnr_error=standard_error(decibels),
        square_error=float(np.mean((decoded.astype(np.float64) - images) ** 2)),
        pictures=len(images),
    )


def quality_table(columns: Mapping[str, Sequence[Reconstruction]]) -> str:
    """A table of PSNR with a row for each kind of latents and a column for each decoder."""
    rows = [["latents", *(f"{name}, PSNR dB" for name in columns), "s.e.", "pictures"]]
    for qualities in zip(*columns.values(), strict=True):
        first = qualities[0]
        label = first.latents if not first.noise_std else f"{first.latents}, std {first.noise_std:g}"
        error = max(part.psnr_error for part in qualities)
        rows.append([label, *(f"{part.psnr:.2f}" for part in qualities), f"{error:.2f}", str(first.pictures)])
    return text_table(rows)
