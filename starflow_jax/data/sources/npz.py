"""Images in NumPy files, one file for each split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.source_request import SourceRequest


@SOURCES.register("npz", path=True)
def open_npz(config: SourceConfig, request: SourceRequest) -> ArraySource:
    """The arrays `image` uint8 [n, H, W, C] and `label` integer [n] of `path`/SPLIT.npz.

    Raises:
      ValueError: the file is missing or damaged, or holds other arrays.
    """
    path = Path(config.path or "") / f"{request.split}.npz"
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["image"], arrays["label"].astype(np.int32)
    except Exception as error:  # a damaged zip file raises many kinds of errors
        raise ValueError(f"data file {path} cannot be read: {str(error).splitlines()[0]}") from error
    num_classes = int(labels.max(initial=0)) + 1
    return ArraySource(path.stem, images, labels, levels=256, num_classes=num_classes)
