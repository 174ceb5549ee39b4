"""IDX files, the format of MNIST: images and labels of one split in two files, also compressed by gzip."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import error_reason
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.npz import known_levels
from starflow_jax.data.sources.regular_file import open_regular
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import split_names

_UNSIGNED_BYTES = 8
_MAX_BYTES = 2**33
_CHUNK = 2**24


@SOURCES.register("idx", path=True)
def open_idx(config: SourceConfig, request: SourceRequest) -> ArraySource:
    """The files of one split in the folder `path`, such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.

    The test split is that of files whose names contain "t10k", "test" or "val".

    Raises:
      ValueError: files that are missing, damaged or of other kinds.
    """
    folder = Path(config.path or "")
    check(folder.is_dir(), f"data folder {folder} does not exist")
    file = _images_file(folder, request.split)
    labels_file = _labels_file(file)
    images, labels = read_idx(file), read_idx(labels_file)
    check(images.ndim in (3, 4), f"data file {file} must contain images [n, H, W], got {list(images.shape)}")
    check(
        labels.shape == images.shape[:1],
        f"data file {labels_file} must contain {len(images)} labels, one for each image, got {list(labels.shape)}",
    )
    check(images.size > 0, f"data file {file} must contain images, got {list(images.shape)}")
    levels = known_levels(file, images, None, config.levels)
    grey = images[..., None] if images.ndim == 3 else images
    numbers = labels.astype(np.int32)
    return ArraySource(f"{folder.name}-{request.split}", grey, numbers, levels, int(numbers.max()) + 1)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, uint8 of any shape; compressed files are recognised by their first bytes.

    Raises:
      ValueError: the file is missing or damaged, of another format or another type of numbers, or larger than 8 GiB.
    """
    try:
        with open_regular(path) as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _array(path, raw)
            with gzip.open(raw) as stream:
                return _array(path, stream)  # type: ignore[arg-type]
    except (OSError, EOFError, struct.error) as error:
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error
    except Exception as error:  # zlib raises its own errors on damaged data
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error


def _array(path: Path, stream: BinaryIO) -> np.ndarray:
    zero, kind, dimensions = struct.unpack(">HBB", stream.read(4))
    check(zero == 0 and 1 <= dimensions <= 4, f"data file {path} is not of the IDX format")
    check(kind == _UNSIGNED_BYTES, f"data file {path} must contain unsigned bytes (type 8), got numbers of type {kind}")
    shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
    size = int(np.prod(np.asarray(shape, object)))
    check(size <= _MAX_BYTES, f"data file {path} must contain at most {_MAX_BYTES} values, got the shape {list(shape)}")
    values = bytearray()
    while len(values) < size and (chunk := stream.read(min(_CHUNK, size - len(values)))):
        values += chunk
    check(
        len(values) == size and not stream.read(1),
        f"data file {path} must contain the {size} values of its shape {list(shape)}, got "
        f"{len(values) if len(values) < size else 'more'}",
    )
    return np.frombuffer(bytes(values), np.uint8).reshape(shape)


def _images_file(folder: Path, split: str) -> Path:
    """The file of images of a split, by its name."""
    marks = "train" if split == "train" else "|".join(("t10k", *split_names(split)))
    files = sorted(file for file in folder.iterdir() if re.search(r"images.*idx[34]", file.name.lower()))
    matches = [file for file in files if re.search(marks, file.name.lower())]
    names = ", ".join(file.name for file in (matches or files)) or "none"
    plain = [file for file in matches if not file.name.lower().endswith(".gz")]
    check(
        len(matches) == 1 or len(plain) == 1,
        f"data folder {folder} must contain one file of {split} images in the IDX format, such as "
        f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte, got {names}",
    )
    return matches[0] if len(matches) == 1 else plain[0]


def _labels_file(images: Path) -> Path:
    """The file of labels beside a file of images, compressed or not."""
    name = re.sub(r"idx[34]", "idx1", images.name, flags=re.IGNORECASE)
    name = re.sub("images", "labels", name, flags=re.IGNORECASE)
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        if (images.parent / candidate).is_file():
            return images.parent / candidate
    raise ValueError(f"data folder {images.parent} must contain {name} beside {images.name}")
