"""Autoencoders in .npz files: arrays and nothing that could run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from starflow_jax.autoencoders.patch_pca import PatchPCA
from starflow_jax.autoencoders.protocol import Autoencoder, Identity
from starflow_jax.config.checks import check
from starflow_jax.files import replacing

AUTOENCODER_FILE = "autoencoder.npz"
_KINDS = ("identity", "patch_pca")


def save_autoencoder(path: Path, autoencoder: Autoencoder, params: Mapping[str, Any]) -> None:
    """Writes an autoencoder with its parameters, whole or not at all."""
    sizes = {"stride": autoencoder.stride, "pixel_channels": autoencoder.pixel_channels}
    sizes["channels"] = autoencoder.channels
    kind = "identity" if isinstance(autoencoder, Identity) else "patch_pca"
    with replacing(path) as temporary:
        arrays = {f"params.{name}": np.asarray(value) for name, value in params.items()}
        everything: dict[str, Any] = {"kind": np.asarray(kind)} | sizes | arrays
        np.savez(temporary, **everything)


def load_autoencoder(path: Path) -> tuple[Autoencoder, dict[str, np.ndarray]]:
    """An autoencoder and its parameters, float32.

    Raises:
      ValueError: no such file, or other arrays than an autoencoder's.
    """
    check(path.is_file(), f"autoencoder {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kind = str(arrays.pop("kind"))
        stride, pixel_channels, channels = (int(arrays.pop(name)) for name in ("stride", "pixel_channels", "channels"))
    except Exception as error:  # a damaged zip file raises anything
        raise ValueError(f"autoencoder {path} cannot be read: {str(error).splitlines()[0]}") from error
    check(kind in _KINDS, f"autoencoder {path} must be of kind {' or '.join(_KINDS)}, got {kind!r}")
    params = {name.removeprefix("params."): value.astype(np.float32) for name, value in arrays.items()}
    if kind == "identity":
        check(not params, f"autoencoder {path} must have no parameters")
        return Identity(pixel_channels), {}
    autoencoder = PatchPCA(stride, pixel_channels, channels)
    shapes = {"mean": (autoencoder.dim,), "basis": (autoencoder.dim, channels), "std": (channels,)}
    found = {name: value.shape for name, value in params.items()}
    check(found == shapes, f"autoencoder {path} must hold the arrays {shapes}, got {found}")
    check(all(np.isfinite(value).all() for value in params.values()), f"autoencoder {path} must hold finite numbers")
    check(bool((params["std"] > 0).all()), f"autoencoder {path} must have std above 0")
    return autoencoder, params


def has_autoencoder(folder: Path) -> bool:
    """Whether `decode_latents` finds an autoencoder there."""
    return any((path / AUTOENCODER_FILE).is_file() for path in (folder / "train", folder))


def decode_latents(latents: np.ndarray, folder: Path) -> np.ndarray:
    """Latents float32 [..., h, w, c] to pixels in [-1, 1], by the autoencoder that is kept with latents for training.

    Args:
      folder: what `starflow encode` wrote, or the folder of its splits.

    Raises:
      ValueError: no autoencoder there, or one of other latents.
    """
    found = [path / AUTOENCODER_FILE for path in (folder / "train", folder) if (path / AUTOENCODER_FILE).is_file()]
    check(len(found) > 0, f"latents can be seen only with their autoencoder, and {folder} holds no {AUTOENCODER_FILE}")
    return decode_by(found[0], latents)


def decode_by(path: Path, latents: np.ndarray) -> np.ndarray:
    """Latents float32 [..., h, w, c] to pixels in [-1, 1], by the autoencoder in a file.

    Raises:
      ValueError: see `load_autoencoder`; one of other latents.
    """
    autoencoder, params = load_autoencoder(path)
    channels = latents.shape[-1]
    check(
        channels == autoencoder.channels,
        f"autoencoder {path} must be of latents of {channels} channels, got {autoencoder.channels}",
    )
    return np.asarray(autoencoder.decode(params, jnp.asarray(latents)))
