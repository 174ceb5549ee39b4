"""Rewards: functions that give every sample a number, found by name or in a file of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.function_files import function_of_file
from starflow_jax.core.registries import REWARDS
from starflow_jax.evaluation.samples.features.feature_network import named_function
from starflow_jax.evaluation.samples.metrics.clip_score import pair_scores


@dataclasses.dataclass(frozen=True, eq=False)
class RewardInputs:
    """The samples that a reward reads.

    Attributes:
      pixels: uint8 [n, H, W, C], or [n, T, H, W, C] of clips, 0..255: the samples as `starflow sample` shows them.
      x: float32, the denoised samples in the units of the flow, about [-1, 1] or latents.
      wanted: int32 [n], the class that each sample should show: that of its condition, or the target of the training;
        -1 where there is none.
      captions: the caption of each sample; "" where there is none.
    """

    pixels: np.ndarray
    x: np.ndarray
    wanted: np.ndarray
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Reward:
    """A reward with its name.

    Attributes:
      name: as the user gave it.
      function: of `RewardInputs`; returns n finite numbers.
    """

    name: str
    function: Callable[[RewardInputs], np.ndarray]

    def __call__(self, inputs: RewardInputs) -> np.ndarray:
        """The rewards, float64 [n].

        Raises:
          ValueError: the function fails, or returns another number of values or values that are not finite.
        """
        try:
            values = np.asarray(self.function(inputs), np.float64)
        except Exception as error:  # user code may raise anything
            raise ValueError(f"reward {self.name} failed with {type(error).__name__}: {error}") from error
        count = len(inputs.pixels)
        check(
            values.shape == (count,) and bool(np.isfinite(values).all()),
            f"reward {self.name} must return {count} finite numbers, got "
            + (f"shape {list(values.shape)}" if values.shape != (count,) else "values that are not finite"),
        )
        return values

    @property
    def column(self) -> str:
        """Its name in tables: the part after the last colon."""
        return self.name.rpartition(":")[2]


def open_reward(name: str) -> Reward:
    """The reward of a name in `registries.REWARDS`, or the function of FILE.py:FUNCTION or MODULE:FUNCTION.

    The function reads `RewardInputs` and returns a number for each sample. That of clip:MODULE:FUNCTION reads pixels
    and captions instead and returns features of both, as for the metric "clip"; the reward is the positive part of
    their cosine. The file or the module is the user's own code, and is executed.

    Raises:
      ValueError: there is no such reward, file, module or function.
    """
    source, colon, _ = name.rpartition(":")
    if not colon:
        REWARDS.check("reward", name)
        return Reward(name, REWARDS.get(name))
    if source.startswith("clip:"):
        network = named_function(name.removeprefix("clip:"))[0]
        return Reward(name, lambda inputs: pair_scores(*network(inputs.pixels, list(inputs.captions))) / 100.0)
    if not source.endswith(".py"):
        return Reward(name, named_function(name)[0])
    return Reward(name, function_of_file("reward", name))
