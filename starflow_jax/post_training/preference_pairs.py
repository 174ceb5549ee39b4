"""Pairs of a better and a worse example: a step's pairs from a file, or ranked by the reward."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.lib.npyio import NpzFile

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.regular_files import check_file
from starflow_jax.training.step.inputs import noisy_pixels

_STREAM = 0x7061_6972  # folded into the seed: the noise of pairs is independent of that of samples
_ARRAYS = ("winner", "loser", "label", "caption")


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


def read_pairs(path: Path, config: ExperimentConfig) -> PreferencePairs:
    """The pairs of an .npz file, which executes nothing.

    Its arrays are `winner` and `loser` [n, (T,) H, W, C], integer levels of pixels as the run's data have them or
    float latents, and `label` integer [n] or `caption` text [n] where the flow reads a condition.

    Raises:
      ValueError: the file is missing or damaged, or its arrays do not fit the flow.
    """
    try:
        check_file(path)
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, NpzFile):
            raise ValueError("it contains one array without a name")
        with loaded:
            arrays = {name: loaded[name] for name in _ARRAYS if name in loaded.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"pairs file {path} cannot be read: {reason}") from error
    for name in ("winner", "loser"):
        check(name in arrays, f"pairs file {path} must contain the array {name!r}, got {', '.join(arrays) or 'none'}")
    winner, loser = arrays["winner"], arrays["loser"]
    flow, frames = config.flow, config.data.frames
    shape = ((frames,) if frames else ()) + (*flow.image_shape, flow.channels)
    for name in ("winner", "loser"):
        found = arrays[name]
        check(
            len(found) > 0 and found.shape == (len(winner), *shape),
            f"pairs file {path} must contain {name} {['n', *shape]}, got {list(found.shape)}",
        )
        _check_values(path, name, found, config)
    count = len(winner)
    label = _whole(path, arrays.get("label", np.full(count, -1)), count, flow.num_classes or flow.text_dim)
    caption = arrays.get("caption", np.full(count, ""))
    check(
        caption.shape == (count,) and caption.dtype.kind == "U",
        f"pairs file {path} must contain caption as {count} texts, got {caption.dtype} {list(caption.shape)}",
    )
    return PreferencePairs(winner, loser, label, tuple(map(str, caption)))


def _check_values(path: Path, name: str, values: np.ndarray, config: ExperimentConfig) -> None:
    if config.data.on_latents:
        check(
            values.dtype.kind == "f" and bool(np.isfinite(values).all()),
            f"pairs file {path} must contain {name} as finite floating-point latents, got {values.dtype}",
        )
        return
    levels = config.data.pixel_levels
    low, high = (values.min(), values.max()) if values.dtype.kind in "iu" else (-1, -1)
    check(
        low >= 0 and high < levels,
        f"pairs file {path} must contain {name} as integers from 0 to {levels - 1}, got {values.dtype}"
        + (f" from {low} to {high}" if values.dtype.kind in "iu" else ""),
    )


def _whole(path: Path, values: Any, count: int, classes: int) -> np.ndarray:
    fits = values.shape == (count,) and values.dtype.kind in "iu"
    check(
        fits and values.min() >= -1 and values.max() < max(classes, 0),
        f"pairs file {path} must contain label as {count} integers from -1 to {classes - 1}, got {values.dtype} "
        f"{list(values.shape)}" + (f" from {values.min()} to {values.max()}" if fits else ""),
    )
    labels: np.ndarray = values.astype(np.int32)
    return labels
