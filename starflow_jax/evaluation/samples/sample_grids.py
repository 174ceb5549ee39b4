"""Grids of samples as PNG files: while a run trains, and by class beside real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.media import image_grid, write_png
from starflow_jax.models.autoencoders import has_autoencoder
from starflow_jax.sampling import class_labels, sample
from starflow_jax.training import Snapshot

# Folded into the seed, so that this noise is independent of the noise of training.
_STREAM = 0x5A4D


def enlargement(height: int, width: int) -> int:
    """The factor by which small images are enlarged, to about 64 pixels."""
    return max(1, 64 // max(height, width))


def class_columns(classes: int, count: int) -> int | None:
    """The number of columns, one for each class, where classes are few and `count` images fill a row; else None."""
    return classes if 1 < classes <= 20 and count >= classes else None


def reason_without_samples(config: ExperimentConfig) -> str | None:
    """The reason why no samples are written while a run trains; None where they are."""
    data = config.data
    if any(part.frames for part in data.parts):
        return "sampling of clips takes too long"
    if data.traits.vectors:
        return "vectors have no picture"
    if config.reads_captions:
        return "starflow sample samples from captions"
    latents = [part.path for part in data.parts if part.traits.latents]
    if latents and config.flow.text_dim:
        return "sampling from text states needs captions"
    if latents and data.decoder is None and (data.mixture or not has_autoencoder(Path(latents[0] or ""))):
        return f"latents can be shown only with their autoencoder, and {latents[0]} contains none"
    return None


def write_sample_grid(snapshot: Snapshot, *, warn: Callable[[str], None] = warnings.warn) -> None:
    """A training callback that writes `config.sample.num` samples to `samples_STEP.png` in the working folder.

    The noise is the same at every step, so that the samples show the progress of the model. Each class has a column.
    Samples with values that are not finite are not written; `warn` is called with a sentence on them.
    """
    config = snapshot.config
    key = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
    labels = class_labels(config, config.sample.num)
    samples = sample(snapshot.params, config, key, labels)
    if jax.process_index():  # all processes sample, process 0 writes
        return
    if samples.report.non_finite:
        warn(
            f"step {snapshot.step}: {samples.report.non_finite} of {samples.report.images} samples contain values "
            "that are not finite, and no image of them is written"
        )
        return
    columns = class_columns(config.flow.num_classes or config.flow.text_dim, len(labels))
    write_png(
        snapshot.workdir / f"samples_{snapshot.step:06d}.png",
        image_grid(samples.images, columns),
        scale=enlargement(*config.flow.image_shape),
    )


def write_class_panels(path: Path, panels: Sequence[tuple[str, np.ndarray]]) -> None:
    """Writes panels side by side, one row for each class.

    Args:
      path: the PNG file, written whole or not at all.
      panels: titles, and uint8 [classes, k, H, W, C] with C of 1 or 3.
    """
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes, columns, height, _, channels = panels[0][1].shape
    width = 0.34 * columns + 0.2
    gap = max(1, height // 16)
    figure = Figure(figsize=(width * len(panels), 0.34 * classes + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (axes, (title, images)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        # A dark grey border separates neighbouring images.
        framed = np.pad(images, ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=48)
        picture = image_grid(framed.reshape(-1, *framed.shape[2:]), images.shape[1])
        grey = channels == 1
        axes.imshow(
            picture[..., 0] if grey else picture,
            cmap="gray" if grey else None,
            vmin=0,
            vmax=255,
            interpolation="nearest",
        )
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        rows = [(row + 0.5) * (height + 2 * gap) - 0.5 for row in range(classes)] if index == 0 else []
        axes.set_yticks(rows, [str(row) for row in range(classes)] if index == 0 else [])
        axes.tick_params(length=0)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160)
