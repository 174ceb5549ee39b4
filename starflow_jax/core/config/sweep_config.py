"""Configuration of a sweep: checkpoints x data x noise x conditions, evaluated by exact likelihood.

Like an experiment, a sweep is described by frozen dataclasses that validate their fields (`core.config.build`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from starflow_jax.core.choices import Dtype, Split, choices
from starflow_jax.core.config.checks import check, check_addresses, check_choice, check_choices, check_integer
from starflow_jax.core.config.source_config import SourceConfig

Noise = Literal["uniform", "trained"]
Steps = Literal["all", "newest"]
Condition = Literal["true", "dropped", "shuffled"]
Transform = Literal["none", "inverted", "upside-down", "mixed", "random"]


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """Checkpoints of one run, or of one ported model.

    Attributes:
      workdir: folder of a run (`starflow train`, `starflow port`), or a model folder.
      name: its name in tables; None for the folder's name.
      steps: "all" checkpoints, the "newest" one, or a list of steps.
      ema: whether the exponential moving average of the parameters is used if the run has one.
    """

    workdir: str
    name: str | None = None
    steps: tuple[int, ...] | Steps = "all"
    ema: bool = True

    def __post_init__(self) -> None:
        check(bool(self.workdir), "workdir must be the path of a folder, got ''")
        check_addresses(self, "workdir")
        check(self.name != "", "name must be None or text, got ''")
        if isinstance(self.steps, str):
            check_choice("steps", self.steps, choices(Steps))
            return
        check(len(self.steps) > 0, "steps must be 'all', 'newest' or at least one step, got none")
        for step in self.steps:
            check_integer("steps", step, minimum=0)
        check(len(set(self.steps)) == len(self.steps), f"steps must name every step once, got {self.steps}")


@dataclasses.dataclass(frozen=True)
class SweepData:
    """One data set.

    Attributes:
      name: its name in tables; None for the name of the source.
      source: source of the examples; None for the data that each run was trained on (of several sources or buckets,
        those of the flow's image size).
      split: "test" or "train".
      count: number of examples, from the first; None for all.
      role: "in" or "out" of the distribution; the report measures how well log p(x) separates the two.
      transform: transformation of the pixels: "inverted" (inverted intensities), "upside-down" (rows in reverse order),
        "mixed" (one permutation of the pixel positions for all examples), "random" (replaced by uniform noise).
      levels: number of levels to which pixels are rounded down, to match the in-distribution data; None leaves them
        unchanged.
      conditions: conditions that replace those of the sweep, for data without a true condition.
    """

    name: str | None = None
    source: SourceConfig | None = None
    split: Split = "test"
    count: int | None = None
    role: Literal["in", "out"] = "in"
    transform: Transform = "none"
    levels: int | None = None
    conditions: tuple[Condition, ...] | None = None

    def __post_init__(self) -> None:
        check(self.name != "", "name must be None or text, got ''")
        check_choices(self)
        if self.count is not None:
            check_integer("count", self.count, minimum=1)
        if self.levels is not None:
            check_integer("levels", self.levels, minimum=2)
            check(self.levels <= 256, f"levels must be at most 256, got {self.levels}")
        if self.conditions is not None:
            check_conditions(self.conditions)
        if self.source is not None:
            check(not self.source.traits.mixture, "source must be one source, not a mixture; list several data sets")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Everything that determines the results of a sweep, and the batch size, which does not affect them.

    Attributes:
      name: name of the sweep.
      runs, data: checkpoints and data sets.
      noise: noise that is added to the data: "uniform" (dequantisation), a standard deviation sigma_n of Gaussian noise
        on pixels in [-1, 1] or on latents, or "trained" (the noise that each run was trained with). A noise-conditioned
        flow reads this deviation as its noise level; with uniform noise it reads its lowest level.
      conditions: condition of a flow that reads captions or classes: the "true" one, none ("dropped"), or that of
        another example ("shuffled"; an example of another class if possible). An unconditional flow is evaluated once.
      draws: number of noise samples per example; seed: of the noise and of the shuffling.
      dtype: compute dtype of the networks. "bfloat16" is measured in addition to float32, and the report has the
        difference.
      batch_size: rows (pairs of an example and a noise sample) per batch, over all devices and processes; rounded up to
        a multiple of the number of devices that share a batch. Results are saved after every batch.
      histogram_bins: number of bins of the report's histograms.
    """

    name: str
    runs: tuple[SweepRun, ...]
    data: tuple[SweepData, ...] = (SweepData(),)
    noise: tuple[Noise | float, ...] = ("trained",)
    conditions: tuple[Condition, ...] = ("true",)
    draws: int = 4
    seed: int = 0
    dtype: Dtype = "float32"
    batch_size: int = 256
    histogram_bins: int = 40

    def __post_init__(self) -> None:
        check(bool(self.name), "name must be text, got ''")
        check(len(self.runs) > 0, "runs must name at least one run, got none")
        check(len(self.data) > 0, "data must name at least one data set, got none")
        check(len(self.noise) > 0, "noise must name at least one level, got none")
        for level in self.noise:
            if isinstance(level, str):
                check_choice("noise", level, choices(Noise))
            else:
                real = not isinstance(level, bool) and math.isfinite(level) and level > 0
                check(real, f"noise must be 'uniform', 'trained' or a finite number above 0, got {level!r}")
        check(len(set(self.noise)) == len(self.noise), f"noise must name every level once, got {self.noise}")
        check_conditions(self.conditions)
        for name in ("draws", "batch_size", "histogram_bins"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        check_choices(self)
        names = [dataset.name for dataset in self.data if dataset.name is not None]
        repeated = sorted({name for name in names if names.count(name) > 1})
        check(not repeated, f"data must have names that differ, got {', '.join(repeated)} again")


def check_conditions(conditions: tuple[Condition, ...]) -> None:
    """Raises ValueError unless there is at least one condition, and all are valid and distinct."""
    check(len(conditions) > 0, "conditions must name at least one, got none")
    for condition in conditions:
        check_choice("conditions", condition, choices(Condition))
    check(len(set(conditions)) == len(conditions), f"conditions must name every one once, got {conditions}")
