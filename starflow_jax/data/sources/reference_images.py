"""Real images that samples are compared with: a folder of images, or an array in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.npz import read_images
from starflow_jax.data.sources.source_opening import open_source


def open_real(path: Path, size: tuple[int, int], channels: int, background: Background = "white") -> Source:
    """Opens images of one size.

    Args:
      path: a folder of images, which are resized and centre-cropped to `size`, or an `.npz` file whose `image` is uint8
        [n, H, W, C] of that size. A subfolder `train` is read if it exists; give the path of another part to read that.
      size: rows and columns; channels: 1 or 3.
      background: the colour that transparent pixels of image files are composed onto.

    Raises:
      ValueError: no such path, files that cannot be read, or arrays of another kind, size or channels.
    """
    if path.is_dir():
        # Only the size and channels of a flow affect how images are cropped.
        cut = FlowConfig(channels=channels, image_size=size, width=64, num_blocks=1, layers_per_block=1)
        return open_source(DataConfig(source="images", path=str(path), background=background), "train", flow=cut)
    check(path.is_file(), f"real must be a folder of images or an .npz file, got {path}, which does not exist")
    try:
        source = read_images(path, "train", None, with_labels=False)
    except ValueError as error:
        raise ValueError(f"real {path} must be an .npz file with `image`, uint8 [n, H, W, C]: {error}") from error
    wanted = (*size, channels)
    shape = source.images.shape
    check(
        shape[1:] == wanted,
        f"image of {path} must be uint8 [n, {', '.join(map(str, wanted))}], got uint8 {list(shape)}",
    )
    return dataclasses.replace(source, name=path.name)
