"""A reward for images of digits by several classifiers, which are harder to mislead than one.

python experiments/benchmarks/post_training.py ... --reward experiments/benchmarks/digit_readers.py:several
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.rewards.digit_rewards import digit, wanted_digits
from starflow_jax.evaluation.rewards.reward import RewardInputs


def several(samples: RewardInputs) -> np.ndarray:
    """The mean, from 0 to 1, of three readings of the wanted digit in images of 8x8 pixels, [n].

    They are the support-vector classifier of the reward "digit" (0 or 1), the share of the wanted digit among the eight
    nearest training digits, and its probability by a forest of randomised trees.
    """
    wanted = wanted_digits(samples)
    levels = np.rint(samples.pixels.reshape(len(wanted), -1) * (16 / 255))
    neighbours, forest = readers()
    rows = np.arange(len(wanted))
    shares = [reader.predict_proba(levels)[rows, wanted] for reader in (neighbours, forest)]
    return np.mean([digit(samples), *shares], axis=0)


@functools.cache
def readers() -> tuple[Any, Any]:
    """The two further classifiers, fitted to the training digits."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.neighbors import KNeighborsClassifier

    source = digits("train")
    images = source.images.reshape(len(source.images), -1).astype(np.float64)
    fitted = (KNeighborsClassifier(8), ExtraTreesClassifier(200, random_state=0))
    first, second = (reader.fit(images, source.labels) for reader in fitted)
    return first, second
