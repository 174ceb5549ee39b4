"""A small classifier of digits as a feature network, trained here in seconds and stored in a file.

It lets the whole measurement of sample quality run without a download. Distances of its features compare models of
digits with one another; they do not compare with published FIDs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.samples.features.feature_network import FeatureNetwork, weights_digest
from starflow_jax.tensor_formats.tensor_folders import read_tensors, write_tensors

SIDE, FEATURES, CLASSES = 8, 64, 10
_EPOCHS = 20
_FULL_INK = 16  # the largest level of the digits of scikit-learn
_SHAPES = {"first": (SIDE**2, 128), "features": (128, FEATURES), "last": (FEATURES, CLASSES)}


def digit_network(path: Path) -> FeatureNetwork:
    """The classifier stored in the file `path`; where there is none, it is trained on the training digits and written.

    It reads grey images uint8 [B, 8 e, 8 e, 1] and gives 64 features, the last hidden layer, and 10 logits.

    Raises:
      ValueError: a file that holds something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, train_digit_classifier())
    params = read_tensors(path)
    shapes = {name: value.shape for name, value in params.items()}
    expected: dict[str, tuple[int, ...]] = {f"{name}.kernel": shape for name, shape in _SHAPES.items()}
    expected |= {f"{name}.bias": shape[-1:] for name, shape in _SHAPES.items()}
    check(shapes == expected, f"{path} must contain the digit classifier, got other tensors; remove it")

    def apply(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check(
            images.ndim == 4 and images.shape[3] == 1 and not any(side % SIDE for side in images.shape[1:3]),
            f"the digit classifier reads grey images with sides that are multiples of {SIDE}, got "
            f"{list(images.shape[1:])}",
        )
        return _classify(params, images)

    return FeatureNetwork("classifier of digits", weights_digest(params), apply, (1,))


def train_digit_classifier(seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of the classifier by name, fitted on the 1,437 training digits; deterministic on one machine.

    Every digit is also shifted by one pixel in four directions, so that features depend less on its position.
    """
    # Imported here because importing scikit-learn takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    source = digits("train")
    ink = np.pad(np.rint(source.images * (255.0 / _FULL_INK)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    moves = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    shifted = [_scaled(ink[:, i : i + SIDE, j : j + SIDE]) for i, j in moves]
    widths = tuple(outputs for _, outputs in _SHAPES.values())[:-1]
    model = MLPClassifier(widths, activation="tanh", batch_size=128, max_iter=_EPOCHS, random_state=seed)
    # Matrices this small are multiplied faster on one thread, and then in a fixed order of summation.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen, not a limit
        model.fit(np.concatenate(shifted), np.tile(source.labels, len(moves)))
    layers = zip(_SHAPES, model.coefs_, model.intercepts_, strict=True)
    return {
        f"{name}.{leaf}": value.astype(np.float32)
        for name, kernel, bias in layers
        for leaf, value in (("kernel", kernel), ("bias", bias))
    }


@functools.cache
def _trained() -> dict[str, np.ndarray]:
    return train_digit_classifier()


def digit_classes(images: np.ndarray) -> np.ndarray:
    """The digit that the classifier reads in grey images [n, 8 e, 8 e, 1], 0..255: int64 [n].

    It is trained by the first call of a process.
    """
    return _classify(_trained(), np.asarray(images))[1].argmax(axis=1)


def _scaled(images: np.ndarray) -> np.ndarray:
    """Images 0 to 255, [n, 8 e, 8 e, 1], as [n, 64] in [-1, 1], averaged over squares of e x e pixels."""
    count, height, width, _ = images.shape
    cells = images.astype(np.float32).reshape(count, SIDE, height // SIDE, SIDE, width // SIDE)
    return cells.mean(axis=(2, 4)).reshape(count, -1) / 127.5 - 1.0


def _classify(params: Mapping[str, np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [B, 64] and logits [B, 10]."""
    x = np.tanh(_scaled(images) @ params["first.kernel"] + params["first.bias"])
    features = np.tanh(x @ params["features.kernel"] + params["features.bias"])
    return features, features @ params["last.kernel"] + params["last.bias"]
