"""A contact sheet of examples with their captions, one row for each source."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starflow_jax.core.atomic_writing import replacing

_FRAMES = 4  # number of frames of a clip
_CELL = 1.9  # inches
_LETTERS = 34


def write_contact_sheet(
    path: Path, rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], *, columns: int = 6
) -> None:
    """Writes a contact sheet as PNG.

    Args:
      path: the file.
      rows: (title, examples) of each row; an example is (pixels, text): uint8 [H, W, C], or a clip [T, H, W, C] of
        which four frames are shown in a square, and the text below it.
      columns: examples in a row.
    """
    from matplotlib.figure import Figure

    rows = [(title, list(examples)[:columns]) for title, examples in rows]
    figure = Figure(figsize=(_CELL * columns, (_CELL + 0.75) * max(len(rows), 1)), dpi=110)
    parts = figure.subfigures(max(len(rows), 1), 1, squeeze=False)[:, 0]
    for part, (title, examples) in zip(parts, rows, strict=False):
        part.suptitle(title, fontsize=9, x=0.01, ha="left", y=0.99)
        part.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.26, wspace=0.06)
        for axes in (cells := part.subplots(1, columns, squeeze=False)[0]):
            axes.axis("off")
        for axes, (pixels, text) in zip(cells, examples, strict=False):
            image = _still(pixels)
            grey = image.shape[2] == 1
            axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
            lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, _LETTERS)]
            axes.text(
                0.5, -0.04, "\n".join(lines[:7]), transform=axes.transAxes, fontsize=5.5, ha="center", va="top",
                parse_math=False,
            )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _still(pixels: np.ndarray) -> np.ndarray:
    """An image unchanged; evenly spaced frames of a clip, two by two."""
    if pixels.ndim == 3:
        return pixels
    chosen = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), _FRAMES)).round().astype(int)]
    if len(chosen) < _FRAMES:
        return np.concatenate(list(chosen), axis=1)
    return np.concatenate([np.concatenate(list(chosen[i : i + 2]), axis=1) for i in (0, 2)], axis=0)
