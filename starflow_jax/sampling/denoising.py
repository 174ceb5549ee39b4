"""How a call of sampling removes the training noise, and the flow that computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Int, Shaped

from starflow_jax.core.choices import Denoise, DenoiseStep, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows import Flow, iterative_denoise, learned_denoise, score_denoise

# Fields of requests and options; those of `SampleConfig` have the same names.
DENOISE_FIELDS = ("denoise", "denoise_levels", "denoise_step", "denoise_clip")

# Folded into the key of a sample for the noise of its denoising, which no other noise may equal.
DENOISE_STREAM = 0x6465_6E6F


@dataclasses.dataclass(frozen=True)
class Denoising:
    """The method, a static argument of compiled programs.

    Attributes:
      method: "none", "score", "learned", "iterative" or "iterative-learned".
      step, clip: of an iterative method (`flows.iterative_denoise`).
    """

    method: Denoise = "none"
    step: DenoiseStep = "ode"
    clip: bool = False

    @property
    def iterates(self) -> bool:
        """Whether it goes over many noise levels."""
        return self.method.startswith("iterative")

    @property
    def reads_score(self) -> bool:
        """Whether it takes the gradient of the whole flow."""
        return self.method in ("score", "iterative")

    def flow_config(self, flow: FlowConfig) -> FlowConfig:
        """The configuration of the flow that computes it: float32 for the iterated score."""
        if self.method != "iterative":
            return flow
        # Neither cuDNN nor the kernels for GPUs have attention in float32.
        return dataclasses.replace(flow, dtype="float32", kernels="xla" if flow.kernels == "xla" else "auto")

    def apply(
        self,
        flow: Flow,
        x: Float[Array, "B *size"],
        cond: Shaped[Array, "B *rest"] | None,
        noise_std: float,
        num_levels: Int[Array, ""] | None,
        noise: Callable[[Int[Array, ""]], Float[Array, "B *size"]] | None,
    ) -> Float[Array, "B *size"]:
        """The data without noise.

        Args:
          flow: of `flow_config`; x: with noise of standard deviation `noise_std`; cond: as in `Flow.forward`.
          num_levels, noise: as in `iterative_denoise`, for methods that iterate.
        """
        if self.method == "none":
            return x
        remove = score_denoise if self.reads_score else learned_denoise
        if not self.iterates:
            return remove(flow, x, cond, noise_std)
        assert flow.config.noise_levels is not None and num_levels is not None  # the request has been checked

        def estimate(x: Float[Array, "B *size"], level: Float[Array, ""]) -> Float[Array, "B *size"]:
            return remove(flow, x, cond, level)

        return iterative_denoise(
            estimate,
            x,
            (flow.config.noise_levels[0], noise_std),
            num_levels,
            step=self.step,
            clip=self.clip,
            noise=noise,
        )


def denoise_fields(request: Any) -> dict[str, Any]:
    """The fields of a request about denoising, by name, as options of sampling."""
    return {name: getattr(request, name) for name in DENOISE_FIELDS}


def check_denoise_fields(request: Any) -> None:
    """Raises ValueError unless the fields of a request about denoising are None or have values in their range."""
    check_choice("denoise", request.denoise, (None, *choices(Denoise)))
    if request.denoise_levels is not None:
        check_integer("denoise_levels", request.denoise_levels, minimum=1)
    check_choice("denoise_step", request.denoise_step, (None, *choices(DenoiseStep)))
    clip = request.denoise_clip
    check(clip is None or isinstance(clip, bool), f"denoise_clip must be True, False or None, got {clip!r}")


def resolved_denoising(config: ExperimentConfig, options: Mapping[str, Any]) -> tuple[Denoising, int]:
    """The method and the number of its levels, values of `config.sample` in place of None; 1 level where none count.

    Args:
      options: by the names of `DENOISE_FIELDS`.

    Raises:
      ValueError: naming the option that is out of range or does not fit the model.
    """
    default = config.sample
    method = default.denoise if options["denoise"] is None else options["denoise"]
    check_denoise(config, method)
    iterates = method.startswith("iterative")
    for name in DENOISE_FIELDS[1:]:
        check(
            iterates or options[name] is None,
            f"{name} needs denoise 'iterative' or 'iterative-learned', got denoise {method!r}",
        )
    if not iterates:
        return Denoising(method), 1
    levels: int | None = default.denoise_levels if options["denoise_levels"] is None else options["denoise_levels"]
    step: DenoiseStep = default.denoise_step if options["denoise_step"] is None else options["denoise_step"]
    clip = default.denoise_clip if options["denoise_clip"] is None else options["denoise_clip"]
    assert config.flow.noise_levels is not None  # check_denoise has run
    low, high = config.flow.noise_levels
    levels = max(round(high / low), 1) if levels is None else levels
    check_integer("denoise_levels", levels, minimum=1)
    check(levels < 2**31, f"denoise_levels must be below 2**31, got {levels}")
    check_choice("denoise_step", step, choices(DenoiseStep))
    check(
        not (clip and config.data.on_latents), "denoise_clip must be False for a model of latents, which have no bounds"
    )
    return Denoising(method, step, bool(clip)), levels


def recorded_denoising(config: ExperimentConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by name, those of the configuration in place of None, without those that have no effect.

    Arguments and errors are those of `resolved_denoising`.
    """
    denoising, levels = resolved_denoising(config, options)
    if not denoising.iterates:
        return {"denoise": denoising.method}
    return dict(zip(DENOISE_FIELDS, (denoising.method, levels, denoising.step, denoising.clip), strict=True))


def check_denoise(config: ExperimentConfig, denoise: str) -> None:
    """Raises ValueError if the training noise of a model cannot be removed by the method `denoise`."""
    check_choice("denoise", denoise, choices(Denoise))
    check(
        denoise == "none" or config.data.noise == "gaussian",
        f"denoise must be 'none' for a model trained without Gaussian noise, got {denoise!r}",
    )
    check(
        not denoise.endswith("learned") or config.flow.denoiser is not None,
        f"denoise must be 'none' or 'score' for a model without a learned denoiser, got {denoise!r}"
        if config.flow.noise_levels is None
        else f"denoise must be 'none', 'score' or 'iterative' for a model without a learned denoiser, got {denoise!r}",
    )
    check(
        not denoise.startswith("iterative") or config.flow.noise_levels is not None,
        f"denoise {denoise!r} needs a model with flow.noise_levels, got one without",
    )
