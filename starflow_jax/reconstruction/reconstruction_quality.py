"""How well held-out pictures come back through the latents, clean ones and noisy ones."""

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
    """Pictures against what the decoder makes of their latents.

    Attributes:
      latents: "clean", or "noisy" with `noise_std` times a standard normal added.
      psnr: mean over pictures in dB, of pixels clipped to [-1, 1]; psnr_error: its standard error.
      square_error: mean square error of pixels in [-1, 1]; pictures: how many.
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
    autoencoder: AutoencoderKL, params: Params, pictures: np.ndarray, noise_std: float, seed: int, batch_size: int
) -> np.ndarray:
    """What the decoder makes of the latents of pictures float32 [n, H, W, C] in [-1, 1], clipped to [-1, 1].

    The noise depends on the seed and the place of a picture alone, so that decoders see the same latents.
    """
    key, size = jax.random.key(seed), min(batch_size, len(pictures))
    found = []
    for first in range(0, len(pictures), size):
        places = np.resize(np.arange(first, min(first + size, len(pictures))), size)  # the last batch filled up
        decoded = _through(autoencoder, params, pictures[places], key, places, noise_std)
        found.append(np.asarray(decoded)[: len(pictures) - first])
    return np.clip(np.concatenate(found), -1.0, 1.0)


@functools.partial(jax.jit, static_argnums=0)
def _through(
    autoencoder: AutoencoderKL,
    params: Params,
    pixels: jax.Array,
    key: jax.Array,
    places: jax.Array,
    noise_std: jax.Array | float,
) -> jax.Array:
    latents = autoencoder.encode(params, pixels)
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    noise = jax.vmap(lambda one: jax.random.normal(one, latents.shape[1:]))(keys)
    return autoencoder.decode(params, latents + jnp.float32(noise_std) * noise)


def quality(pictures: np.ndarray, found: np.ndarray, noise_std: float) -> Reconstruction:
    """Pictures [n, H, W, C] against what came back."""
    decibels = psnr(found, pictures)
    return Reconstruction(
        latents="noisy" if noise_std else "clean",
        noise_std=noise_std,
        psnr=float(decibels.mean()),
        psnr_error=standard_error(decibels),
        square_error=float(np.mean((found.astype(np.float64) - pictures) ** 2)),
        pictures=len(pictures),
    )


def quality_table(columns: Mapping[str, Sequence[Reconstruction]]) -> str:
    """A table of PSNR, a row for each kind of latents, a column for each decoder."""
    rows = [["latents", *(f"{name}, PSNR dB" for name in columns), "s.e.", "pictures"]]
    for each in zip(*columns.values(), strict=True):
        one = each[0]
        label = one.latents if not one.noise_std else f"{one.latents}, std {one.noise_std:g}"
        error = max(part.psnr_error for part in each)
        rows.append([label, *(f"{part.psnr:.2f}" for part in each), f"{error:.2f}", str(one.pictures)])
    return text_table(rows)
