"""Rewards for clips: whether they move in the direction that their caption names, and keep its digit."""

from __future__ import annotations

import math

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import REWARDS
from starflow_jax.data.sources.moving_digits import DIRECTIONS
from starflow_jax.evaluation.rewards.digit_rewards import digit
from starflow_jax.evaluation.rewards.reward import RewardInputs
from starflow_jax.evaluation.video.caption_recognition import read_directions
from starflow_jax.evaluation.video.motion import direction_agreement, frame_displacements, luma


@REWARDS.register("motion")
def motion(inputs: RewardInputs) -> np.ndarray:
    """The mean of "digit" (the share of frames with the caption's digit) and of "direction"."""
    return 0.5 * (digit(inputs) + direction(inputs))


@REWARDS.register("direction")
def direction(inputs: RewardInputs) -> np.ndarray:
    """1 where the ink of a clip moves in the direction of its caption over the first quarter of the frames, else 0."""
    read = read_directions(_clips(inputs) / 127.5 - 1.0)
    return np.asarray([float(way == wanted) for way, wanted in zip(read, _ways(inputs), strict=True)])


@REWARDS.register("direction-cosine")
def direction_cosine(inputs: RewardInputs) -> np.ndarray:
    """The cosine of the angle between the centroid's displacement and the caption's direction; -1 without motion."""
    clips, first = _clips(inputs), _first(inputs)
    found = [
        direction_agreement(clip, DIRECTIONS[way], first=first) for clip, way in zip(clips, _ways(inputs), strict=True)
    ]
    return np.nan_to_num(np.asarray(found), nan=-1.0)


@REWARDS.register("direction-phase")
def direction_phase(inputs: RewardInputs) -> np.ndarray:
    """1 where the phase correlation of the first frames is within 45 degrees of the caption's direction, else 0."""
    return np.asarray(
        [_moves(clip, way, _first(inputs)) for clip, way in zip(_clips(inputs), _ways(inputs), strict=True)]
    )


def _moves(clip: np.ndarray, way: str, first: int) -> float:
    steps = frame_displacements(luma(clip[: first + 1]))
    down, right = np.nan_to_num(steps).sum(axis=0)
    length = math.hypot(down, right)
    along = down * DIRECTIONS[way][0] + right * DIRECTIONS[way][1]
    return float(length > 0.5 and along > math.cos(math.pi / 4) * length)


def _clips(inputs: RewardInputs) -> np.ndarray:
    pixels = np.asarray(inputs.pixels)
    check(
        pixels.ndim == 5 and pixels.shape[1] > 1,
        f"a reward of motion reads clips of two frames or more, got {list(pixels.shape[1:])}",
    )
    return pixels


def _first(inputs: RewardInputs) -> int:
    """The number of displacements for which the direction of a caption holds."""
    return max(1, inputs.pixels.shape[1] // 4)


def _ways(inputs: RewardInputs) -> list[str]:
    ways = []
    for caption in inputs.captions:
        named = [word for word in caption.split() if word in DIRECTIONS]
        check(len(named) == 1, f"a reward of motion needs captions that name one direction, got {caption!r}")
        ways.append(named[0])
    return ways
