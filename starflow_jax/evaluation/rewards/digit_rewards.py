"""Rewards for handwritten digits: whether a sample, or every frame of a clip, shows the digit that is wanted."""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import REWARDS
from starflow_jax.data.sources.moving_digits import NAMES, SIDE
from starflow_jax.evaluation.rewards.reward import RewardInputs
from starflow_jax.evaluation.samples.features.digit_classifier import digit_classes
from starflow_jax.evaluation.video.caption_recognition import crop_digit, ink_levels, read_digits

_NOTHING = -1  # what an empty frame shows


@REWARDS.register("digit")
def digit(inputs: RewardInputs) -> np.ndarray:
    """The share of frames in which a support-vector classifier reads the wanted digit; 0 or 1 for an image."""
    return _share(inputs, read_digits(_grey(inputs)))


@REWARDS.register("digit-network")
def digit_network(inputs: RewardInputs) -> np.ndarray:
    """The same by a multilayer perceptron, which shares no parameters and no loss with the classifier of "digit"."""
    frames = _grey(inputs)
    ink = ink_levels(frames)
    flat = ink.reshape(-1, *ink.shape[-2:])
    crops = flat if flat.shape[1:] == (SIDE, SIDE) else crop_digit(flat)
    found = digit_classes(np.rint(255.0 * crops[..., None]))
    found = np.where(flat.sum(axis=(1, 2)) < 1.0, _NOTHING, found)
    return _share(inputs, found.reshape(ink.shape[:-2]))


def wanted_digits(inputs: RewardInputs) -> np.ndarray:
    """The digit of each sample's caption, else the class that is wanted, int [n].

    Raises:
      ValueError: a sample without either.
    """
    wanted = np.asarray(inputs.wanted).copy()
    for index, caption in enumerate(inputs.captions):
        named = [NAMES.index(word) for word in caption.split() if word in NAMES]
        if wanted[index] < 0 and len(named) == 1:
            wanted[index] = named[0]
    check(
        bool((wanted >= 0).all()),
        "a reward of digits needs samples of a class, captions that name one digit, or a target, got none of them",
    )
    return wanted


def _share(inputs: RewardInputs, found: np.ndarray) -> np.ndarray:
    right = found.reshape(len(found), -1) == wanted_digits(inputs)[:, None]
    share: np.ndarray = right.mean(axis=1)
    return share


def _grey(inputs: RewardInputs) -> np.ndarray:
    """Frames [n, (T,) H, W, 1] in [-1, 1]; images enlarged from 8x8 are averaged back to it."""
    pixels = np.asarray(inputs.pixels, np.float64)
    check(
        pixels.shape[-1] == 1 and min(pixels.shape[-3:-1]) >= SIDE,
        f"a reward of digits reads grey pixels with sides of at least {SIDE}, got {list(pixels.shape[1:])}",
    )
    rows, columns = pixels.shape[-3:-1]
    if pixels.ndim == 4 and rows == columns and rows % SIDE == 0:
        e = rows // SIDE
        pixels = pixels.reshape(len(pixels), SIDE, e, SIDE, e, 1).mean(axis=(2, 4))
    return pixels / 127.5 - 1.0
