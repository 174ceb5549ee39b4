"""Decodes latents in batches with a stored autoencoder, outside of training."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Autoencoder, Params
from starflow_jax.models.autoencoders.storage import (
    AUTOENCODER_FILE,
    AUTOENCODER_FOLDER,
    kept_autoencoder,
    load_autoencoder,
)
from starflow_jax.models.autoencoders.tiled import Tiled
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder
from starflow_jax.models.autoencoders.wan.streaming import decode_first, decode_next, decode_stream, encode_stream
from starflow_jax.models.autoencoders.wan.tiling import TiledWan

# Frames with more latent positions along a side are decoded in tiles: the cost of attention is quadratic.
LARGEST = 128
TILE, OVERLAP = 96, 16
# Pixels decoded at once: 16 images of 512 x 512.
_PIXELS = 2**22


def has_autoencoder(folder: Path) -> bool:
    """Whether `decode_latents` finds an autoencoder in a folder."""
    return kept_autoencoder(folder) is not None


def decode_latents(latents: Float[np.ndarray, "*B rows columns c"], folder: Path) -> Float[np.ndarray, "*b H W C"]:
    """Decodes latents float32 [..., h, w, c] to pixels in [-1, 1] with the autoencoder stored beside training latents.

    Args:
      latents: the latents; folder: output of `starflow encode`, or the folder of its splits.

    Raises:
      ValueError: the folder holds no autoencoder, or one with another number of channels.
    """
    path = kept_autoencoder(folder)
    if path is None:
        raise ValueError(
            f"latents can be decoded only with their autoencoder, and {folder} contains neither {AUTOENCODER_FILE} nor "
            f"{AUTOENCODER_FOLDER}"
        )
    return decode_by(path, latents)


def decode_by(path: Path, latents: Float[np.ndarray, "*B rows columns c"]) -> Float[np.ndarray, "*b H W C"]:
    """Decodes latents float32 [B, (T,) h, w, c] or [h, w, c] to pixels in [-1, 1] with a stored autoencoder.

    Raises:
      ValueError: see `load_autoencoder`; or its number of channels differs.
    """
    autoencoder, params = load_autoencoder(path)
    channels = latents.shape[-1]
    check(
        channels == autoencoder.channels,
        f"autoencoder {path} must decode latents of {channels} channels, got {autoencoder.channels}",
    )
    if latents.ndim == 3:
        return decode_in_batches(autoencoder, params, latents[None])[0]
    return decode_in_batches(autoencoder, params, latents)


def decode_in_batches(
    autoencoder: Autoencoder, params: Params, latents: Float[np.ndarray, "*B rows columns c"]
) -> Float[np.ndarray, "*b H W C"]:
    """Decodes latents float32 [B, (T,) h, w, c] to float32 pixels in batches; large frames in tiles."""
    autoencoder = fitted(autoencoder, latents.shape[-3:-1])
    if latents.ndim == 5 and isinstance(autoencoder, WanAutoencoder | TiledWan):
        params = jax.device_put(params)
        videos = (decode_stream(autoencoder, params, clip[:, None]) for clip in latents)  # frames [1, h, w, c] in order
        return np.concatenate([np.concatenate([np.asarray(part) for part in chunks], axis=1) for chunks in videos])
    *frames, rows, columns, _ = latents.shape[1:]
    pixels = rows * columns * autoencoder.stride**2 * (1 + (frames[0] - 1) * autoencoder.frame_stride if frames else 1)
    size = max(1, min(len(latents), _PIXELS // pixels))
    params = jax.device_put(params)
    decoded = []
    for first in range(0, len(latents), size):
        chosen = np.resize(np.arange(first, min(first + size, len(latents))), size)  # pads the last batch
        decoded.append(np.asarray(_decode(autoencoder, params, latents[chosen]))[: len(latents) - first])
    return np.concatenate(decoded)


def encode_frames(
    autoencoder: Autoencoder, params: Params, pixels: Float[np.ndarray, "T H W C"]
) -> Float[np.ndarray, "t rows columns c"]:
    """Encodes one video float32 [T, H, W, C] in [-1, 1] to latents [t, h, w, c], T = 1 + frame_stride (t - 1)."""
    stride = autoencoder.stride
    autoencoder = fitted(autoencoder, (pixels.shape[1] // stride, pixels.shape[2] // stride))
    params = jax.device_put(params)
    if isinstance(autoencoder, WanAutoencoder | TiledWan):
        chunks = encode_stream(autoencoder, params, (frame[None] for frame in pixels))
        return np.concatenate([np.asarray(part)[0] for part in chunks])
    return np.concatenate([np.asarray(_encode(autoencoder, params, frame[None])) for frame in pixels])


def fitted(autoencoder: Autoencoder, size: tuple[int, ...]) -> Autoencoder:
    """The autoencoder, in tiles where frames of `size` latent rows and columns are large."""
    if max(size) <= LARGEST:
        return autoencoder
    if isinstance(autoencoder, WanAutoencoder):
        return TiledWan(autoencoder, TILE, OVERLAP)
    return Tiled(autoencoder, TILE, OVERLAP)


class FrameDecoder:
    """Decodes latent frames of videos one by one, in order, with the same result as `decode_in_batches`."""

    def __init__(self, autoencoder: Autoencoder, params: Params):
        self._autoencoder, self._params, self._past = autoencoder, jax.device_put(params), None

    def __call__(self, latents: Float[np.ndarray, "B rows columns c"]) -> Float[np.ndarray, "B n H W C"]:
        """Decodes the next frame float32 [B, h, w, c] of every video to n frames of pixels, float32 [B, n, H, W, C]."""
        autoencoder = fitted(self._autoencoder, latents.shape[1:3])
        if not isinstance(autoencoder, WanAutoencoder | TiledWan):
            return np.asarray(_decode(autoencoder, self._params, latents))[:, None]
        chunk = jax.numpy.asarray(latents)[:, None]
        if self._past is None:
            pixels, self._past = decode_first(autoencoder, self._params, chunk)
        else:
            pixels, self._past = decode_next(autoencoder, self._params, chunk, self._past)
        return np.asarray(pixels)


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    autoencoder: Autoencoder, params: Params, pixels: Float[Array, "*B H W C"]
) -> Float[Array, "*b rows columns c"]:
    return autoencoder.encode(params, pixels)


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    autoencoder: Autoencoder, params: Params, latents: Float[Array, "*B rows columns c"]
) -> Float[Array, "*b H W C"]:
    return autoencoder.decode(params, latents)
