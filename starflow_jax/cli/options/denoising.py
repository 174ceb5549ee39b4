"""The options of how the training noise is removed from samples."""

from __future__ import annotations

from typing import Any

from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.core.choices import Denoise, DenoiseStep, choices


def add_denoising(group: Any) -> None:
    """Declares --denoise, --levels, --denoise-step and --denoise-clip; group: a parser or a group of options."""
    group.add_argument(
        "--denoise",
        type=choice(*choices(Denoise)),
        metavar="NAME",
        help="how the training noise is removed: none, score, learned; for noise-conditioned flows also iterative "
        "(over many noise levels by the score of the flow) or iterative-learned (by its learned denoiser) (default: "
        "the configuration's)",
    )
    group.add_argument(
        "--levels",
        dest="denoise_levels",
        type=integer(1, 10**5),
        metavar="N",
        help="iterative: number of noise levels (default: the configuration's, else t1 / t0)",
    )
    group.add_argument(
        "--denoise-step",
        type=choice(*choices(DenoiseStep)),
        metavar="NAME",
        help="iterative: the step between two levels, ode (default) or sde, which adds noise",
    )
    group.add_argument(
        "--denoise-clip",
        action="store_const",
        const=True,
        help="iterative: clip the estimates of clean pixels to [-1, 1] at every level",
    )
