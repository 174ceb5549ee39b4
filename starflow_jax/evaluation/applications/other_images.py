"""Out-of-distribution images of the size and levels of the training images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.base import ArraySource


def other_images(source: ArraySource, *, seed: int = 0) -> Mapping[str, ArraySource]:
    """Sets of as many images as `source` has, by name, from the most natural to the least.

    - "photographs": crops of scikit-learn's two photographs, china and flower, shrunk and reduced to the levels.
    - "negatives": the images of `source` with bright and dark exchanged.
    - "turned": these images turned by a quarter to the left (square ones only).
    - "faint": these images with a quarter of their contrast, about the darkest level: simple, and so often likely.
    - "shuffled pixels": these images, the pixels of each permuted at random.
    - "noise": independent pixels, all levels equally likely.
    - "constant": all pixels of an image have the same level; the levels of the images cover the range.

    Labels are those of `source`, because a conditional model needs one; they are meaningless.

    Args:
      source: held-out images of the training distribution, [n, H, W, C] with C of 1 or 3.
      seed: of everything random.

    Raises:
      ValueError: the number of channels is not 1 or 3.
    """
    count, height, width, channels = source.images.shape
    check(channels in (1, 3), f"images must have 1 or 3 channels, got {channels}")
    rng = np.random.default_rng(seed)
    last = source.levels - 1
    pixels = source.images.reshape(count, height * width, channels)
    order = rng.permuted(np.tile(np.arange(height * width), (count, 1)), axis=1)
    sets = {
        "photographs": _photographs(count, (height, width), channels, source.levels, rng),
        "negatives": last - source.images,
        **({"turned": np.rot90(source.images, axes=(1, 2))} if height == width else {}),
        "faint": np.rint(source.images / 4.0),
        "shuffled pixels": np.take_along_axis(pixels, order[..., None], axis=1).reshape(source.images.shape),
        "noise": rng.integers(0, source.levels, source.images.shape),
        "constant": np.broadcast_to(np.linspace(0, last, count).round()[:, None, None, None], source.images.shape),
    }
    return {
        name: ArraySource(
            name, np.ascontiguousarray(images, np.uint8), source.labels, source.levels, source.num_classes
        )
        for name, images in sets.items()
    }


def _photographs(count: int, size: tuple[int, int], channels: int, levels: int, rng: np.random.Generator) -> np.ndarray:
    """Random crops of photographs shrunk so that about eight crops fit side by side, uint8."""
    from sklearn.datasets import load_sample_image  # the import takes a second

    shrunk = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(load_sample_image(name)).convert("L" if channels == 1 else "RGB")
        factor = 8 * max(size) / min(image.size)
        side = (round(image.size[0] * factor), round(image.size[1] * factor))
        resized = np.asarray(image.resize(side, Image.Resampling.LANCZOS)).reshape(side[1], side[0], channels)
        shrunk.append(np.rint(resized * ((levels - 1) / 255.0)).astype(np.uint8))
    crops = []
    for index in range(count):
        picture = shrunk[index % len(shrunk)]
        top, left = (int(rng.integers(0, length - part + 1)) for length, part in zip(picture.shape, size, strict=False))
        crops.append(picture[top : top + size[0], left : left + size[1]])
    return np.stack(crops)
