"""Plots of the likelihood of clips: bits/dim against the frame, and a heat map of the tokens under every frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.evaluation.likelihood.video_scores import ClipLikelihood, mean_per_frame

# Numbers of clips and of frames in a figure.
_CLIPS, _FRAMES = 6, 16


def plot_frames(path: Path, scores: Sequence[ClipLikelihood]) -> None:
    """Draws bits/dim against the frame as a PNG file: every clip, and their mean with its standard error.

    Still images, which have one frame each, are plotted against their index instead.
    """
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = mean_per_frame(scores)
    if len(rows) == 1:
        axes.plot([of_clip.bits_per_dim for of_clip in scores], ".")
        axes.axhline(rows[0][0], color="C1", label="mean")
        axes.set(xlabel="image", ylabel="bits/dim")
    else:
        named = len(scores) <= _CLIPS
        for of_clip in scores:
            (line,) = axes.plot(of_clip.frames, linewidth=1.0 if named else 0.6)
            if named:
                line.set_label(of_clip.clip.name.replace("$", r"\$"))
            else:
                line.set_color("0.75")
        mean, error = np.asarray([row[0] for row in rows]), np.nan_to_num([row[1] for row in rows])
        if len(scores) > 1:
            axes.plot(mean, color="black", linewidth=2.0, label=f"mean of {len(scores)} clips")
            axes.fill_between(range(len(mean)), mean - error, mean + error, color="black", alpha=0.2)
        axes.set(xlabel="frame", ylabel="bits/dim given earlier frames")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_token_maps(path: Path, scores: Sequence[ClipLikelihood]) -> int:
    """Draws the first clips as a PNG file, under every frame the bits/dim of its tokens as a heat map.

    One colour scale for all; of a long clip, frames at even distances are shown.

    Returns:
      How many clips are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clips = list(scores[:_CLIPS])
    frame_indices = [
        np.unique(np.linspace(0, len(c.frames) - 1, min(_FRAMES, len(c.frames))).round().astype(int)) for c in clips
    ]
    columns = max(map(len, frame_indices))
    maps = [of_clip.tokens.mean(axis=0) for of_clip in clips]
    # Percentiles, so that a few extreme tokens do not determine the scale.
    low, high = np.percentile(np.concatenate([m.ravel() for m in maps]), [1, 99])
    rows, columns_of = len(clips), max(0.9 * columns, 2.7)
    figure = Figure(figsize=(columns_of + 1.1, 2.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, of_clip, at, tokens in zip(parts, clips, frame_indices, maps, strict=True):
        clip = of_clip.clip
        part.suptitle(f"{clip.name}  {clip.caption}".strip(), fontsize=9, parse_math=False)
        grid = part.subplots(2, columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for (above, below), frame in zip(grid.T, at, strict=False):  # shorter clips leave the last columns empty
            grey = clip.pixels.shape[-1] != 3
            picture = clip.pixels[frame, ..., 0] if grey else clip.pixels[frame] / (clip.levels - 1)
            above.imshow(picture, cmap="gray", vmin=0, vmax=clip.levels - 1, interpolation="nearest")
            above.set_title(f"{frame}: {of_clip.frames[frame]:.2f}", fontsize=7, pad=2)
            image = below.imshow(tokens[frame], cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        part.colorbar(image, ax=grid, label="bits/dim", fraction=0.05)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return len(clips)
