"""Files that a visitor drops: read by the project's readers, which are made for untrusted files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.media import read_video
from starflow_jax.studio.opened_model import OpenedModel

MOST_FRAMES = 512  # of a dropped clip
_LONGEST_NAME = 80


class Upload(NamedTuple):
    """A dropped file: its path in the folder of uploads, and its name there, of which Gradio leaves some marks out."""

    path: Path
    name: str

    @property
    def shown(self) -> str:
        """The end of the name, for messages."""
        return self.name[-_LONGEST_NAME:]


def check_upload(path: str | None, folder: Path, what: str = "a picture or a clip") -> Upload:
    """A dropped file, once it is known to be one.

    Args:
      path: as the browser named it, which is not trusted; None where nothing was dropped.
      folder: of all uploads.

    Raises:
      ValueError: nothing was dropped, or the path leads elsewhere.
    """
    check(bool(path), f"drop {what} first")
    found = Path(str(path))
    inside = found.resolve().is_relative_to(folder.resolve())
    check(inside and found.is_file(), "the file must be one that was dropped here in the last hour, got another path")
    return Upload(found, found.name)


def read_upload(upload: Upload, model: OpenedModel, *, most: int = MOST_FRAMES) -> np.ndarray:
    """The frames of a dropped picture or clip in the size and channels of the model's pixels, uint8 [T, H, W, C].

    Raises:
      ValueError: a file that is no picture or clip, is damaged, or has too many frames; the message names the file by
        its name without its folder.
    """
    rows, columns, channels = pixel_shape(model)
    background = model.config.data.background
    try:
        return read_video(
            upload.path, size=(rows, columns), channels=channels, max_frames=most, background=background
        ).frames
    except ValueError as error:
        raise ValueError(str(error).replace(str(upload.path), upload.shown)) from error


def pixel_shape(model: OpenedModel) -> tuple[int, int, int]:
    """Rows, columns and channels of one frame in pixels."""
    flow, autoencoder = model.config.flow, model.run.autoencoder
    rows, columns = flow.image_shape
    if autoencoder is None:
        return rows, columns, flow.channels
    return rows * autoencoder.stride, columns * autoencoder.stride, autoencoder.pixel_channels
