"""Images in NumPy files: a folder with one file for each split, or one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import error_reason
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import named_entry, split_names

# Values below this are no evidence of 256 levels, so that their number must be stated.
_DARK = 128
_MOST_CLASSES = 2**31 - 1


@SOURCES.register("npz", path=True)
def open_npz(config: SourceConfig, request: SourceRequest) -> ArraySource:
    """The images and labels of `path`/SPLIT.npz, or of the file `path`; see `read_images`.

    A file contains the training split, unless its keys name splits: `x_train`, `y_train`, `x_test` and `y_test`, or
    `train_images`, `train_labels` and so on.

    Raises:
      ValueError: the file is missing or damaged, or holds other arrays.
    """
    path = Path(config.path or "")
    if path.is_file():
        return read_images(path, request.split, config.levels, with_labels=True, whole=True)
    file = named_entry(path, request.split, ".npz", Path.is_file)
    if file is None:
        others = [other.name for other in sorted(path.glob("*.npz"))] if path.is_dir() else []
        names = f", but {', '.join(others[:4])}" if others else ""
        raise ValueError(f"data file {path / f'{request.split}.npz'} does not exist{names}")
    return read_images(file, request.split, config.levels, with_labels=True)


def read_images(path: Path, split: str, levels: int | None, *, with_labels: bool, whole: bool = False) -> ArraySource:
    """The images of an .npz file.

    Its arrays are `image` uint8 [n, H, W] or [n, H, W, C], `label` integer [n] or [n, 1], and, where values do not
    reach 0..255, `levels`, the number of levels of a pixel.

    Args:
      path: the file; split: of keys that name splits.
      levels: of a pixel, for a file without `levels`; None for 256, which dark images must state.
      with_labels: whether labels are read; whole: whether the file contains all splits, or the training split.

    Raises:
      ValueError: the file is damaged, or contains other arrays.
    """
    try:
        with _opened(path) as arrays:
            array_names = list(arrays.files)
            image_key, label_key = _keys(path, array_names, split, whole)
            images = arrays[image_key]
            labels = arrays[label_key] if with_labels and label_key is not None else None
            stated = _whole_number(path, arrays["levels"]) if "levels" in array_names else None
    except ValueError as error:
        if str(error).startswith("data file"):
            raise
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error
    except Exception as error:  # a damaged zip file raises many kinds of errors
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error
    _check_arrays(path, {image_key: images} | ({label_key or "label": labels} if with_labels else {}))
    if images.ndim == 3:
        images = images[..., None]
    if labels is not None:
        least, greatest = int(labels.min()), int(labels.max())
        check(
            least >= 0 and greatest < _MOST_CLASSES,
            f"data file {path} must contain labels from 0 to {_MOST_CLASSES - 1}, got {least} to {greatest}",
        )
    numbers = np.zeros(len(images), np.int32) if labels is None else labels.reshape(-1).astype(np.int32)
    count = known_levels(path, images, stated, levels)
    return ArraySource(path.stem, images, numbers, levels=count, num_classes=int(numbers.max(initial=0)) + 1)


def _opened(path: Path) -> NpzFile:
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, NpzFile):
        raise ValueError("it contains one array without a name; np.savez(path, image=..., label=...) writes several")
    return arrays


def _whole_number(path: Path, levels: np.ndarray) -> int:
    check(
        levels.size == 1 and levels.dtype.kind in "iuf" and float(levels.item()).is_integer(),
        f"data file {path} must state `levels` as one whole number, got {levels.dtype} {list(levels.shape)}",
    )
    return int(levels.item())


def known_levels(path: Path, images: np.ndarray, stated: int | None, levels: int | None) -> int:
    """The number of levels of a pixel of images in a file.

    Args:
      path: names the file in messages; images: uint8.
      stated: in the file, None where it states none; levels: of the configuration, None for unknown.

    Raises:
      ValueError: the two differ, or values are so low that 256 levels would be a guess.
    """
    check(
        stated is None or levels in (None, stated), f"data.levels must be the {stated} levels of {path}, got {levels}"
    )
    count = stated or levels
    brightest = int(images.max())
    if count is None:
        check(
            brightest >= _DARK,
            f"data file {path} contains values from {int(images.min())} to {brightest} and does not say of how many "
            f"levels a pixel is: set data.levels ({brightest + 1} or 256), or store `levels` in an .npz file",
        )
        return 256
    check(2 <= count <= 256, f"data.levels must be 2 to 256 for {path}, got {count}")
    check(brightest < count, f"data file {path} must contain values below its {count} levels, got {brightest}")
    return count


def _keys(path: Path, array_names: list[str], split: str, whole: bool) -> tuple[str, str | None]:
    """The names of the arrays of images and of labels."""
    for name in split_names(split):
        for images, labels in ((f"x_{name}", f"y_{name}"), (f"{name}_images", f"{name}_labels")):
            if images in array_names:
                return images, labels if labels in array_names else None
    if whole and split != "train":
        raise ValueError(
            f"data file {path} must contain the {split} split as x_{split} and y_{split}, or path be a folder with "
            f"{split}.npz, got the arrays {', '.join(array_names)}"
        )
    images_key = next((key for key in ("image", "images") if key in array_names), None)
    if images_key is None:
        raise ValueError(
            f"data file {path} must contain `image` uint8 [n, H, W, C] and `label` integer [n], got the arrays "
            f"{', '.join(array_names) or 'none'}"
        )
    return images_key, next((key for key in ("label", "labels") if key in array_names), None)


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray | None]) -> None:
    """Raises ValueError unless the first array contains images and the second, if there is one, their labels."""
    (images, labels) = (*arrays.values(), None)[:2]
    assert images is not None  # `_keys` found it
    fits = images.dtype == np.uint8 and images.ndim in (3, 4) and 0 not in images.shape
    if len(arrays) > 1:
        fits = fits and labels is not None and np.issubdtype(labels.dtype, np.integer)
        fits = fits and labels is not None and labels.size == len(images) == len(labels)
    got = " and ".join(
        f"no {name}" if array is None else f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items()
    )
    check(
        bool(fits),
        f"data file {path} must contain images uint8 [n, H, W] or [n, H, W, C]"
        f"{' and as many labels, integer [n]' if len(arrays) > 1 else ''}, got {got}",
    )
