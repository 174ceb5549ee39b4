"""Pairs of a better and a worse example, read from a file."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import jax
import numpy as np
from numpy.lib import format as npy_format

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.regular_files import open_file
from starflow_jax.data.decoding.bad_examples import error_reason
from starflow_jax.training.step.inputs import noisy_pixels

_STREAM = 0x7061_6972  # folded into the seed: the noise of pairs is independent of that of samples
_ARRAYS = ("winner", "loser", "label", "caption")
_MOST_VALUES = 2**31  # of the winners, and of the losers
_MOST_CHARACTERS = 10_000  # of a caption


@dataclasses.dataclass(frozen=True, eq=False)
class PreferencePairs:
    """The n pairs of a file.

    Attributes:
      winner, loser: [n, (T,) H, W, C]: integer levels of pixels, or float32 values of latents.
      label: int32 [n], the class of both, -1 for none; caption: the caption of both, n of them, "" for none.
    """

    winner: np.ndarray
    loser: np.ndarray
    label: np.ndarray
    caption: tuple[str, ...]

    def rows(self, seed: int, step: int, count: int) -> np.ndarray:
        """The pairs of a step, int [count]: every pass over the pairs has a new order from the seed."""
        total, first = len(self.label), step * count
        epochs = range(first // total, (first + count - 1) // total + 1)
        orders = [np.random.default_rng([seed, epoch]).permutation(total) for epoch in epochs]
        start = first - epochs[0] * total
        return np.concatenate(orders)[start : start + count]

    def noisy(self, rows: np.ndarray, config: ExperimentConfig, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The winners and losers of these rows with the noise that the flow was trained on, float32."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
        keys = jax.random.split(key)
        levels = 0 if config.data.on_latents else config.data.pixel_levels
        both = [
            np.asarray(noisy_pixels(k, x[rows], levels, config.data)) for k, x in zip(keys, self._both, strict=True)
        ]
        return both[0], both[1]

    @property
    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        return self.winner, self.loser


class _Header(NamedTuple):
    """What an array in a file states of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_pairs(path: Path, config: ExperimentConfig) -> PreferencePairs:
    """The pairs of an .npz file, which executes nothing.

    Its arrays are `winner` and `loser` [n, (T,) H, W, C], integer levels of pixels as the run's data have them or
    float latents, and `label` integer [n] or `caption` text [n] where the flow reads a condition; `caption` is required
    where it reads captions. Shapes and dtypes are compared with the flow before an array is read.

    Raises:
      ValueError: the file is missing or damaged, or its arrays do not fit the flow.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            headers = {name: _header(archive, name) for name in _ARRAYS if f"{name}.npy" in archive.namelist()}
            problem = _problem(headers, config)
            arrays = {} if problem else {name: _array(archive, name) for name in headers}
    except Exception as error:  # a damaged zip file raises many kinds of errors
        raise ValueError(f"pairs file {path} cannot be read: {error_reason(error)}") from error
    check(problem == "", f"pairs file {path} must contain {problem}")
    for name in ("winner", "loser"):
        _check_values(path, name, arrays[name], config)
    count = len(arrays["winner"])
    label, most = arrays.get("label", np.full(count, -1)), _most_label(config)
    check(
        label.min() >= -1 and label.max() <= most,
        f"pairs file {path} must contain label from -1 to {most}, got {label.min()} to {label.max()}",
    )
    caption = tuple(map(str, arrays.get("caption", np.full(count, ""))))
    check(
        not config.reads_captions or all(caption),
        f"pairs file {path} must contain captions that are not empty for a run that reads captions",
    )
    return PreferencePairs(arrays["winner"], arrays["loser"], label.astype(np.int32), caption)


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    """What an array states of itself, if its size in the archive is that of such an array."""
    with archive.open(f"{name}.npy") as member:
        header, start = _read_header(member), member.tell()
    size = start + math.prod(header.shape) * header.dtype.itemsize
    stated = archive.getinfo(f"{name}.npy").file_size
    check(size == stated, f"{name} must have the {size} bytes of {header}, got {stated}")
    return header


def _read_header(member: IO[bytes]) -> _Header:
    version = npy_format.read_magic(member)
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    check(version in readers, f"arrays must be of version 1.0 or 2.0 of the format, got {version}")
    shape, _, dtype = readers[version](member)
    return _Header(shape, dtype)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return npy_format.read_array(member, allow_pickle=False)


def _problem(headers: Mapping[str, _Header], config: ExperimentConfig) -> str:
    """What a file must contain and does not, as the end of a sentence; "" where its arrays fit the flow."""
    flow, frames = config.flow, config.data.frames
    shape = ((frames,) if frames else ()) + (*flow.image_shape, flow.channels)
    most = _MOST_VALUES // math.prod(shape)
    for name in ("winner", "loser"):
        if name not in headers:
            return f"the array {name!r}, got {', '.join(headers) or 'none'}"
        found, count = headers[name], (headers["winner"].shape or (0,))[0]
        if not 0 < count <= most or found.shape != (count, *shape):
            return f"{name} {['n', *shape]}, n from 1 to {most}, got {list(found.shape)}"
        if config.data.on_latents and found.dtype.kind != "f":
            return f"{name} as finite floating-point latents, got {found.dtype}"
        if not config.data.on_latents and found.dtype.kind not in "iu":
            return f"{name} as integers from 0 to {config.data.pixel_levels - 1}, got {found.dtype}"
    if "label" in headers and (headers["label"].shape != (count,) or headers["label"].dtype.kind not in "iu"):
        return f"label as {count} integers from -1 to {_most_label(config)}, got {headers['label']}"
    if "caption" in headers:
        found, bytes_of_text = headers["caption"], np.dtype(f"U{_MOST_CHARACTERS}").itemsize
        if found.shape != (count,) or found.dtype.kind != "U" or found.dtype.itemsize > bytes_of_text:
            return f"caption as {count} texts of at most {_MOST_CHARACTERS} characters, got {found}"
    elif config.reads_captions:
        return f"caption for a run that reads captions, got {', '.join(headers)}"
    return ""


def _most_label(config: ExperimentConfig) -> int:
    """The largest label that the flow reads, -1 for none."""
    return config.num_classes - 1


def _check_values(path: Path, name: str, values: np.ndarray, config: ExperimentConfig) -> None:
    if config.data.on_latents:
        check(bool(np.isfinite(values).all()), f"pairs file {path} must contain {name} as finite numbers")
        return
    levels, low, high = config.data.pixel_levels, values.min(), values.max()
    check(
        low >= 0 and high < levels,
        f"pairs file {path} must contain {name} as integers from 0 to {levels - 1}, got {values.dtype} from {low} to "
        f"{high}",
    )
