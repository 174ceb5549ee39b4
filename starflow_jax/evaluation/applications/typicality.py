"""The test of typicality: whether a batch of images has the likelihood that images of the training set have.

In many dimensions nearly all samples of a density have a log-density close to its negative entropy, and the likeliest
images are none of them, so a batch is atypical whether it is too unlikely or too likely (Nalisnick et al., arXiv
1906.02994, algorithm 1). With the entropy estimated by H = mean of -log p over training images, the statistic of a
batch of M images is |mean of -log p(x_m) - H|. Its threshold is the quantile alpha of the statistic over K batches that
are drawn with replacement from held-out images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from starflow_jax.core.config.checks import check, check_integer

ALPHA = 0.99  # the confidence level of the paper


def batch_statistics(bits: np.ndarray, entropy: float, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The statistic of batches that are drawn with replacement, float64 [count].

    Args:
      bits: -log2 p(x) of images [n]; where it is not finite, a batch with that image is infinitely far away.
      entropy: H in bits; size: images in a batch, M; count: number of batches, K.
      rng: the generator of the draws, which is advanced.

    Raises:
      ValueError: no images, or sizes below 1.
    """
    bits = np.asarray(bits, np.float64)
    check(bits.ndim == 1 and bits.size > 0, f"bits must be [n] with n above 0, got {list(bits.shape)}")
    check_integer("size", size, minimum=1)
    check_integer("count", count, minimum=1)
    with np.errstate(invalid="ignore"):
        distance = np.abs(bits[rng.integers(len(bits), size=(count, size))].mean(axis=1) - entropy)
    return np.where(np.isfinite(distance), distance, np.inf)


@dataclasses.dataclass(frozen=True)
class TypicalityTest:
    """The test with batches of one size.

    Attributes:
      size: images in a batch; threshold: of the statistic, in bits.
      atypical: share of batches above the threshold, by the name of the set; of held-out images about 1 - alpha.
    """

    size: int
    threshold: float
    atypical: Mapping[str, float]


def typicality_tests(
    entropy: float,
    held_out: np.ndarray,
    others: Mapping[str, np.ndarray],
    *,
    sizes: tuple[int, ...] = (1, 2, 10, 25),
    alpha: float = ALPHA,
    batches: int = 1000,
    seed: int = 0,
) -> list[TypicalityTest]:
    """Tests batches of held-out images and of other sets.

    Args:
      entropy: H, the mean of -log2 p(x) over training images.
      held_out: bits of held-out images [n]: a random half sets the thresholds, the other half is tested.
      others: bits of the images of other sets, by name.
      sizes: of batches; alpha: the confidence level; batches: number of batches, for thresholds and for tests.
      seed: of the draws.

    Raises:
      ValueError: fewer than two held-out images, an alpha that is not between 0 and 1, or other shapes.
    """
    held_out = np.asarray(held_out, np.float64)
    check(held_out.ndim == 1 and len(held_out) > 1, f"held_out must be [n], n at least 2, got {list(held_out.shape)}")
    check(0 < alpha < 1, f"alpha must be between 0 and 1, got {alpha}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(held_out))
    validation, tested = held_out[order[: len(order) // 2]], held_out[order[len(order) // 2 :]]
    tests = []
    for size in sizes:
        reference = batch_statistics(validation, entropy, size, batches, rng)
        threshold = float(np.quantile(reference, alpha, method="higher"))
        shares = {
            name: float(np.mean(batch_statistics(bits, entropy, size, batches, rng) > threshold))
            for name, bits in {"held out": tested, **others}.items()
        }
        tests.append(TypicalityTest(size, threshold, shares))
    return tests
