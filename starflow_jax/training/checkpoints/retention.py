"""Which checkpoints stay: the newest, and the best by one figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class NewestAndBest:
    """A preservation policy of Orbax.

    Attributes:
      newest: how many of the newest steps stay.
      best: how many of those with the lowest score stay besides; a step without a score is never among them.
      scores: by step; it may grow while the policy is in use.
    """

    newest: int
    best: int
    scores: Mapping[int, float]

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of `steps`, oldest first, that stay; of equal scores the newer one."""
        scored = sorted((step for step in steps if step in self.scores), key=lambda step: (self.scores[step], -step))
        return {*steps[-self.newest :], *scored[: self.best]}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """As Orbax asks."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self.kept(steps)
        return [step in kept for step in steps]
