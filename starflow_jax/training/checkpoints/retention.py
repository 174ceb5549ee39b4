"""Selects the checkpoints that are retained: the newest, and the best by one metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class NewestAndBest:
    """A preservation policy for Orbax.

    Attributes:
      newest: number of newest steps to retain.
      best: number of steps with the lowest scores to retain besides; steps without a score do not count.
      scores: by step; may grow while the policy is in use.
    """

    newest: int
    best: int
    scores: Mapping[int, float]

    def retained(self, steps: Sequence[int]) -> set[int]:
        """Those of `steps`, oldest first, that are retained; of equal scores the newer one."""
        scored = sorted((step for step in steps if step in self.scores), key=lambda step: (self.scores[step], -step))
        return {*steps[-self.newest :], *scored[: self.best]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Implements the interface of Orbax."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        retained = self.retained(steps)
        return [step in retained for step in steps]
