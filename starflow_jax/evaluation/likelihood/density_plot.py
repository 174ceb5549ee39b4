"""The density of a flow on two numbers as a picture, with points over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.parameters import Params
from starflow_jax.sampling.ranking import log_likelihoods

# Points along each axis of the picture, and the share of the range of the points that is added on every side.
RESOLUTION, MARGIN = 160, 0.15


def plot_density(path: Path, params: Params, config: FlowConfig, points: np.ndarray, labels: np.ndarray) -> None:
    """Writes the density of a flow on two numbers as a PNG, with samples over it.

    Args:
      params, config: of the flow.
      points: float [n, 2].
      labels: int [n], classes of the points, -1 for none. Of a flow with classes, the mean density of those that occur
        is shown.

    Raises:
      ValueError: the flow has another number of numbers.
    """
    check(points.shape[1:] == (2,), f"points must be [n, 2], got {list(points.shape)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * np.maximum(high - low, 1e-6)
    axes_of_grid = [np.linspace(a, b, RESOLUTION) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*axes_of_grid), axis=-1).reshape(-1, *config.image_shape, config.channels)
    density = np.zeros(len(grid))
    classes = np.unique(labels) if config.num_classes else [None]
    for label in classes:
        cond = None if label is None else np.full(len(grid), label, np.int32)
        log_p = log_likelihoods(params, config, grid.astype(np.float32), cond, batch_size=6400)
        density += np.exp(log_p.astype(np.float64)) / len(classes)
    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    extent = (*axes_of_grid[0][[0, -1]], *axes_of_grid[1][[0, -1]])
    shades = density.reshape(RESOLUTION, RESOLUTION)
    picture = axes.imshow(shades, origin="lower", extent=extent, cmap="viridis", aspect="auto")
    axes.scatter(points[:2000, 0], points[:2000, 1], s=3, c="white", alpha=0.4, linewidths=0)
    axes.set_xlabel("first number")
    axes.set_ylabel("second number")
    figure.colorbar(picture, label="density")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
