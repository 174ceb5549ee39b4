"""Held-out examples of the run, for visitors who have no file at hand."""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.evaluation.likelihood.scored_source import check_on_pixels, open_scored_source
from starflow_jax.studio.opened_model import OpenedModel

MOST = 10_000  # the example with the highest number


def held_out(model: OpenedModel, number: int) -> np.ndarray:
    """The held-out example of a number, counted from 0, uint8 [T, H, W, C]; a picture is one frame.

    Raises:
      ValueError: a run on latents, data that are not where they were, or fewer examples.
    """
    check_integer("the number of the example", number, minimum=0, maximum=MOST)
    check_on_pixels(model.config)
    source = open_scored_source(model.config, "test", number + 1)
    check(number < len(source), f"the number of the example must be below {len(source)}, got {number}")
    pixels = source[number]["image"]
    scaled = np.rint(pixels * (255.0 / (source.levels - 1))).astype(np.uint8)
    return scaled if scaled.ndim == 4 else scaled[None]
