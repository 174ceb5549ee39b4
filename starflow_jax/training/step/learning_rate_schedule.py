"""The learning rate schedule: linear warm-up, then cosine decay (specification, section 7) or a constant rate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from starflow_jax.core.choices import LearningRateDecay, Schedule
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.train_config import check_decay


@dataclasses.dataclass(frozen=True)
class LearningRateSchedule:
    """The learning rate of update n = 1, 2, ...

        n <= W:      start + (max - start) n / W
        W < n <= T:  min + (max - min) / 2 (1 + cos(pi (n - W) / (T - W)))
        n > T:       min

    by default, and with `decay="linear"`, warm-up, stable phase and decay (arXiv 2404.06395), for the last D updates

        W < n <= T - D:  max
        T - D < n <= T:  max + (min - max) (n - T + D) / D

    With `decay="constant"` the rate stays at max. The warm-up has `start = min` in TARFlow and `min(min, 1e-6)` in
    STARFlow. The originals rise again after T, and fail if the warm-up starts below the minimum (STARFlow) or takes all
    T updates; here W = T means warm-up only.

    Attributes:
      total: T, number of updates; warmup: W, number of warm-up updates, 0 to T.
      max_lr, min_lr: highest and last learning rate.
      family: whose rule for `start` applies.
      decay: shape of the decay; decay_updates: D, of the linear decay; 0 for any other.

    Raises:
      ValueError: a field out of range.
    """

    total: int
    warmup: int
    max_lr: float
    min_lr: float
    family: Schedule = "tarflow"
    decay: LearningRateDecay = "cosine"
    decay_updates: int = 0

    def __post_init__(self):
        check_integer("total", self.total, minimum=1)
        check_integer("warmup", self.warmup, minimum=0)
        check(self.warmup <= self.total, f"warmup must be at most total={self.total}, got {self.warmup}")
        check_real("max_lr", self.max_lr, minimum=0.0)
        check_real("min_lr", self.min_lr, minimum=0.0)
        check_choices(self)
        check_decay(self.decay, self.decay_updates, total=self.total, warmup=self.warmup)

    @property
    def start_lr(self) -> float:
        """The learning rate at the start of the warm-up (of update 0, which is never made)."""
        return self.min_lr if self.family == "tarflow" else min(self.min_lr, 1e-6)

    def rate(self, update: int) -> float:
        """The learning rate of update `update`, counted from 1, in float64."""
        if update <= self.warmup:
            return self.start_lr + (self.max_lr - self.start_lr) * update / self.warmup
        if self.decay == "constant":
            return self.max_lr
        if update >= self.total:
            return self.min_lr
        if self.decay == "linear":
            share = max(0.0, (update - self.total + self.decay_updates) / self.decay_updates)
            return self.max_lr + (self.min_lr - self.max_lr) * share
        fraction = (update - self.warmup) / (self.total - self.warmup)
        return self.min_lr + (self.max_lr - self.min_lr) / 2 * (1 + math.cos(math.pi * fraction))

    def __call__(self, count: Any) -> Any:
        """The learning rate after `count` updates (an Optax schedule counts from 0), float32, traceable.

        Args:
          count: integer array of any shape, or an int.

        Returns:
          float32 array of that shape.
        """
        update = jnp.asarray(count, jnp.float32) + 1.0
        warm = self.start_lr + (self.max_lr - self.start_lr) * update / max(self.warmup, 1)
        if self.decay == "constant":
            return jnp.where(update <= self.warmup, warm, self.max_lr).astype(jnp.float32)
        if self.decay == "linear":
            share = jnp.clip((update - self.total + self.decay_updates) / self.decay_updates, 0.0, 1.0)
            decayed = self.max_lr + (self.min_lr - self.max_lr) * share
        else:
            fraction = jnp.clip((update - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
            decayed = self.min_lr + (self.max_lr - self.min_lr) / 2 * (1 + jnp.cos(jnp.pi * fraction))
        rate = jnp.where(update <= self.warmup, warm, decayed)
        return jnp.where((update > self.warmup) & (update >= self.total), self.min_lr, rate).astype(jnp.float32)
