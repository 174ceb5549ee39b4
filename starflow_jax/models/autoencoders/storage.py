"""Reads and writes autoencoders as arrays and JSON; no code in the files is executed.

There are three layouts:

- a `.npz` file: a linear autoencoder;
- another file: the tensors of Wan2.2 under the names of its original release (`Wan2.2_VAE.pth`, or safetensors);
- a folder in the layout of diffusers: `config.json` and `diffusion_pytorch_model.safetensors` (or its shards). Its
  `_class_name` is a name of the registry `AUTOENCODERS`. Autoencoders that are trained here use this layout, too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing, replacing_folder, write_text
from starflow_jax.core.choices import Dtype, choices
from starflow_jax.core.config.checks import check, check_choice
from starflow_jax.core.registries import AUTOENCODERS
from starflow_jax.core.storage.copies import local_path
from starflow_jax.models.autoencoders.patch_pca import PatchPCA
from starflow_jax.models.autoencoders.protocol import Autoencoder, AutoencoderFormat, Identity, Params
from starflow_jax.models.autoencoders.tiled import Tiled
from starflow_jax.models.autoencoders.wan.files import wan22_from_original
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder
from starflow_jax.models.pretrained_folder import read_json
from starflow_jax.tensor_formats.tensor_folders import open_folder, read_tensors, write_tensors

AUTOENCODER_FILE = "autoencoder.npz"
AUTOENCODER_FOLDER = "autoencoder"
CONFIG_FILE = "config.json"
TENSORS_STEM = "diffusion_pytorch_model"
TENSORS_FILE = f"{TENSORS_STEM}.safetensors"
ORIGINAL = (".pth", ".pt", ".safetensors")  # suffixes of Wan2.2 files
_LARGEST = 2**16  # integer in a configuration: larger numbers of layers or channels are errors
_LINEAR = ("identity", "patch_pca")


def load_autoencoder(path: Path, dtype: Dtype = "float32") -> tuple[Autoencoder, Params]:
    """Reads an autoencoder and its float32 parameters.

    Args:
      path: a file or a folder, or the address of one; "PATH:0.6" reads a video autoencoder at PATH with
        `temporal_scale` 0.6, by which STARFlow-V multiplies latent frames after the first.
      dtype: of its convolutions, "float32" or "bfloat16" (norms and sums are float32); linear autoencoders support
        float32 only.

    Raises:
      ValueError: the path does not exist, or its contents are of an unknown kind or not an autoencoder.
    """
    check_choice("autoencoder dtype", dtype, choices(Dtype))
    path = local_path(path)
    plain, scale = split_scale(path)
    if plain != path:
        autoencoder, params = load_autoencoder(plain, dtype)
        if not isinstance(autoencoder, WanAutoencoder):
            raise ValueError(f"autoencoder {path} must be a video autoencoder to have a temporal scale")
        return dataclasses.replace(autoencoder, temporal_scale=scale), params
    if path.is_dir():
        return _load_folder(path, dtype)
    check(path.is_file(), f"autoencoder {path} does not exist")
    if path.suffix in ORIGINAL:
        return _load_original(path, dtype)
    check(dtype == "float32", f"autoencoder {path} is linear and must be computed in float32, got {dtype!r}")
    return _load_linear(path)


def split_scale(path: Path) -> tuple[Path, float]:
    """ "PATH:0.6" as the path and the temporal scale, which is 1 by default."""
    scaled = re.fullmatch(r"(.+):(\d*\.?\d+)", str(path))
    return (path, 1.0) if scaled is None or path.exists() else (Path(scaled[1]), float(scaled[2]))


def save_autoencoder(path: Path, autoencoder: Autoencoder, params: Params) -> None:
    """Writes an autoencoder with its parameters atomically.

    Args:
      path: a file for a linear autoencoder; a new or empty folder for any other.
      autoencoder: the autoencoder; params: its parameters.

    Raises:
      ValueError: autoencoders of this kind cannot be written.
    """
    if isinstance(autoencoder, Identity | PatchPCA):
        _save_linear(path, autoencoder, params)
        return
    for name in AUTOENCODERS.names():
        layout: type[AutoencoderFormat] = AUTOENCODERS.get(name)
        if isinstance(autoencoder, layout.kind) and hasattr(layout, "write"):
            config, tensors = layout.write(autoencoder, params)
            with replacing_folder(path) as folder:
                write_tensors(folder / TENSORS_FILE, tensors)
                write_text(folder / CONFIG_FILE, json.dumps({"_class_name": name, **config}, indent=2) + "\n")
            return
    raise ValueError(f"autoencoder must be of a kind that can be written, got {type(autoencoder).__name__}")


def keep_autoencoder(folder: Path, autoencoder: Autoencoder, params: Params) -> Path:
    """Writes an autoencoder into a folder of its latents, where `kept_autoencoder` finds it; returns its path."""
    if isinstance(autoencoder, Tiled):
        autoencoder = autoencoder.autoencoder
    linear = isinstance(autoencoder, Identity | PatchPCA)
    path = folder / (AUTOENCODER_FILE if linear else AUTOENCODER_FOLDER)
    save_autoencoder(path, autoencoder, params)
    return path


def kept_autoencoder(folder: Path) -> Path | None:
    """The path that `keep_autoencoder` wrote, in the folder or in that of its training split; None without one."""
    folder = local_path(folder, _is_kept)
    for path in (folder / "train", folder):
        if (path / AUTOENCODER_FILE).is_file():
            return path / AUTOENCODER_FILE
        if (path / AUTOENCODER_FOLDER / CONFIG_FILE).is_file():
            return path / AUTOENCODER_FOLDER
    return None


def _is_kept(name: str) -> bool:
    """Whether a file of a folder of latents is that of its autoencoder."""
    return name.removeprefix("train/").partition("/")[0] in (AUTOENCODER_FILE, AUTOENCODER_FOLDER)


def _load_folder(folder: Path, dtype: Dtype) -> tuple[Autoencoder, Params]:
    path = folder / CONFIG_FILE
    check(path.is_file(), f"autoencoder {folder} must be a folder with {CONFIG_FILE}, and has none")
    config = read_json(path)
    kind = str(config.get("_class_name"))
    for name, value in config.items():
        counted = isinstance(value, int) and not isinstance(value, bool)
        check(not counted or abs(value) <= _LARGEST, f"autoencoder {folder}: {name} must be at most {_LARGEST}")
    AUTOENCODERS.check(f"_class_name of autoencoder {folder}", kind)
    tensors = {name: tensor.read() for name, tensor in open_folder(folder, TENSORS_STEM).items()}
    for name, tensor in tensors.items():
        # The kind of ml_dtypes' bfloat16 is "V".
        check(tensor.dtype.kind in "fV", f"autoencoder {folder}: {name} must be floating point, got {tensor.dtype}")
    try:
        autoencoder, params = AUTOENCODERS.get(kind).read(config, tensors)
    except ValueError as error:
        raise ValueError(f"autoencoder {folder}: {error}") from error
    except (TypeError, KeyError, AttributeError, OverflowError) as error:  # fields of other types than expected
        raise ValueError(f"autoencoder {folder}: {CONFIG_FILE} has a field of the wrong type: {error}") from error
    return dataclasses.replace(autoencoder, dtype=dtype), params


def _load_original(path: Path, dtype: Dtype) -> tuple[Autoencoder, Params]:
    tensors = read_tensors(path)
    try:
        autoencoder, params = wan22_from_original(tensors)
    except ValueError as error:
        raise ValueError(f"autoencoder {path}: {error}") from error
    return dataclasses.replace(autoencoder, dtype=dtype), params


def _save_linear(path: Path, autoencoder: Identity | PatchPCA, params: Params) -> None:
    sizes = {"stride": autoencoder.stride, "pixel_channels": autoencoder.pixel_channels}
    sizes["channels"] = autoencoder.channels
    kind = "identity" if isinstance(autoencoder, Identity) else "patch_pca"
    with replacing(path) as temporary:
        arrays = {f"params.{name}": np.asarray(value) for name, value in params.items()}
        everything: dict[str, Any] = {"kind": np.asarray(kind)} | sizes | arrays
        np.savez(temporary, **everything)


def _load_linear(path: Path) -> tuple[Autoencoder, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kind = str(arrays.pop("kind"))
        stride, pixel_channels, channels = (int(arrays.pop(name)) for name in ("stride", "pixel_channels", "channels"))
    except Exception as error:  # a damaged zip file raises many kinds of errors
        raise ValueError(f"autoencoder {path} cannot be read: {str(error).splitlines()[0]}") from error
    check(kind in _LINEAR, f"autoencoder {path} must be of kind {' or '.join(_LINEAR)}, got {kind!r}")
    params = {name.removeprefix("params."): value.astype(np.float32) for name, value in arrays.items()}
    if kind == "identity":
        check(not params, f"autoencoder {path} must have no parameters")
        return Identity(pixel_channels), {}
    autoencoder = PatchPCA(stride, pixel_channels, channels)
    shapes = {"mean": (autoencoder.dim,), "basis": (autoencoder.dim, channels), "std": (channels,)}
    actual = {name: value.shape for name, value in params.items()}
    check(actual == shapes, f"autoencoder {path} must contain the arrays {shapes}, got {actual}")
    check(all(np.isfinite(value).all() for value in params.values()), f"autoencoder {path} must contain finite numbers")
    check(bool((params["std"] > 0).all()), f"autoencoder {path} must have std above 0")
    return autoencoder, params
