"""Initial estimates of an iteration: the noise, zero, an affine map of it, the previous frame, or a network's."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check, check_choice, check_real


@dataclasses.dataclass(frozen=True)
class AffineStart:
    """x = mean_c + scale_c z for every channel c of a token: the best guess from channel statistics alone.

    Attributes:
      mean, scale: one number per token channel.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        check(
            len(self.mean) == len(self.scale) > 0,
            f"start.scale must have as many numbers as start.mean, at least 1, got {len(self.scale)} and "
            f"{len(self.mean)}",
        )
        for name in ("mean", "scale"):
            for value in getattr(self, name):
                check_real(f"start.{name}", value)

    def __call__(self, noise: Float[Array | np.ndarray, "B n c"]) -> Float[Array, "B n c"]:
        """The initial estimate for noise [B, n, c]; ValueError where c is not the number of channels."""
        check(
            noise.shape[-1] == len(self.mean),
            f"start.mean must have a number for each of the {noise.shape[-1]} channels of a token, "
            f"got {len(self.mean)}",
        )
        return jnp.asarray(self.mean, jnp.float32) + jnp.asarray(self.scale, jnp.float32) * noise


# "frame": tokens after the first frame start from the previous frame, those of the first frame from the noise.
# "learned": all tokens start from the estimate of a learned inverse, which the caller passes.
Start = Literal["noise", "zero", "frame", "learned"] | AffineStart


def check_start(name: str, start: object) -> None:
    """Raises ValueError unless `start` is one of the starts."""
    if not isinstance(start, AffineStart):
        check_choice(name, start, ("noise", "zero", "frame", "learned"))


def guess(start: Start, noise: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
    """The initial estimate for noise [B, n, c], where it depends on the noise alone.

    "frame": that of the first frame. "learned": the noise, which the solver replaces by the estimate that it is given.
    """
    if isinstance(start, AffineStart):
        return start(noise)
    return jnp.zeros_like(noise) if start == "zero" else noise
