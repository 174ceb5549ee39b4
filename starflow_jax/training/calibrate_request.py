"""The request of a calibration: which examples and errors the solvers are measured with, as one checked value."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.config.checks import check_integer, check_real
from starflow_jax.core.request_errors import require


@dataclasses.dataclass(frozen=True)
class CalibrateRequest:
    """A request to measure the best solver of each block of a trained flow.

    Attributes:
      samples: number of training examples to measure on, at equal distances in the data.
      target_error: relative error of the final sample, at least 1e-6.
      guidance: weight of classifier-free guidance, 0 for none; None for that of the configuration.
      seed: of the noise that is added to the data.

    Raises:
      RequestError, ValueError: a field is out of range.
    """

    samples: int = 4
    target_error: float = 1e-3
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("samples", self.samples, minimum=1)
        check_integer("seed", self.seed, minimum=0)
        require(self.target_error >= 1e-6, "{target_error} must be at least 1e-6, got {0:g}", self.target_error)
        if self.guidance is not None:
            check_real("guidance", self.guidance, minimum=0.0)
