"""What a model sees: where the data come from and what is added to them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.config.checks import check, check_choice, check_integer, check_real


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what is added to them.

    Attributes:
      source: "digits" (scikit-learn's 8x8 digits), "moving_digits" (clips of them, with captions) or "npz" (a
        folder with train.npz and test.npz, each holding `image` uint8 [n, H, W, C] and `label` integer [n]).
      path: the folder of an "npz" source.
      frames: of a clip, 0 for still images; clips, test_clips: how many clips each split of moving digits holds.
      digits: digits in a clip, 1 or 2; speed: pixels they move from frame to frame.
      extend, inverted: shares of clips that are seen from a later moment, and of those whose second half inverts the
        first (`data.moving_digits`).
      noise: "uniform" spreads each integer level over its unit interval (exact bits/dim); "gaussian" adds
        noise_std times a standard normal to pixels in [-1, 1].
      noise_std: sigma_n of Gaussian noise, in units of those pixels.
      label_drop: probability that a label is dropped (-1), for guidance.
      warp: probability that a training image is distorted (`training.warp`); images stay integers, and
        evaluation sees none of it.
      warp_strength: how far the distortion moves its control points, a standard deviation in pixels.
    """

    source: Literal["digits", "moving_digits", "npz"] = "digits"
    path: str | None = None
    frames: int = 0
    clips: int = 20_000
    test_clips: int = 100
    digits: int = 1
    speed: int = 2
    extend: float = 0.0
    inverted: float = 0.0
    noise: Literal["uniform", "gaussian"] = "uniform"
    noise_std: float = 0.0
    label_drop: float = 0.0
    warp: float = 0.0
    warp_strength: float = 0.5

    def __post_init__(self):
        check_choice("source", self.source, ("digits", "moving_digits", "npz"))
        check_integer("frames", self.frames, minimum=0)
        check(
            (self.source == "moving_digits") == (self.frames > 0),
            f"frames must be above 0 for source 'moving_digits' and 0 for others, got source={self.source!r} and "
            f"frames={self.frames}",
        )
        for name in ("clips", "test_clips"):
            check_integer(name, getattr(self, name), minimum=1)
        check_choice("digits", self.digits, (1, 2))
        check_integer("speed", self.speed, minimum=1)
        for name in ("extend", "inverted"):
            check_real(name, getattr(self, name), minimum=0.0)
            check(
                self.source == "moving_digits" or not getattr(self, name),
                f"{name} belongs to source 'moving_digits', got source={self.source!r}, {name}={getattr(self, name)}",
            )
        check_choice("noise", self.noise, ("uniform", "gaussian"))
        check_real("noise_std", self.noise_std, minimum=0.0)
        check_real("label_drop", self.label_drop, minimum=0.0)
        check(self.label_drop < 1.0, f"label_drop must be below 1, got {self.label_drop}")
        check_real("warp", self.warp, minimum=0.0)
        check(self.warp <= 1.0, f"warp must be at most 1, got {self.warp}")
        check(not (self.warp and self.frames), f"warp must be 0 for clips, got {self.warp}")
        check_real("warp_strength", self.warp_strength, minimum=0.0)
        check(
            (self.source == "npz") == (self.path is not None),
            f"path goes with source 'npz', got source={self.source!r} and path={self.path!r}",
        )
        check(
            (self.noise == "gaussian") == (self.noise_std > 0),
            f"noise_std must be above 0 for noise 'gaussian' and 0 for 'uniform', got noise={self.noise!r} "
            f"and noise_std={self.noise_std}",
        )
