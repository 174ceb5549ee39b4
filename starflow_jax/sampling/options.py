"""Options that sampling of images and of videos share."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Num

from starflow_jax.core.choices import Denoise, DenoiseStep, ParameterForm, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer, check_real
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.sampling.denoising import Denoising, denoise_fields, resolved_denoising
from starflow_jax.solvers import AnySolver, is_approximate, named_solver, reads_estimates


class Settings(NamedTuple):
    """The options of one call, with the values of the configuration in place of None."""

    guidance: float
    annealed_guidance: bool
    temperature: float
    attention_temperature: float
    denoising: Denoising
    denoise_levels: int
    parameters: ParameterForm

    def scalars(self) -> dict[str, Num[Array, ""]]:
        """The values that a compiled program takes as arguments, float32 []; "denoise_levels" is int32 []."""
        values = {"weight": self.guidance, "temperature": self.temperature}
        values["attention_temperature"] = self.attention_temperature
        scalars = {name: jnp.float32(value) for name, value in values.items()}
        if self.denoising.iterates:
            scalars["denoise_levels"] = jnp.int32(self.denoise_levels)
        return scalars


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingOptions:
    """Options of sampling; those that are None take the value of `config.sample`.

    Attributes:
      solver: the solver that inverts the blocks.
      guidance: weight w >= 0 of classifier-free guidance, 0 for none.
      annealed_guidance: TARFlow: whether the weight grows along the sequence (`SampleConfig`).
      temperature: factor of the noise z.
      attention_temperature: divides attention logits: in TARFlow of the unconditional half of guidance, in STARFlow
        everywhere.
      denoise: the method that removes the training noise.
      denoise_levels, denoise_step, denoise_clip: of an iterative method (`SampleConfig`).
      parameters: "ready" or "stored" (`SampleConfig`).
      learned: the learned inverse, for solvers that start from its estimates.
      batch_size: samples generated together; the last batch is padded with copies.
    """

    solver: AnySolver | None = None
    guidance: float | None = None
    annealed_guidance: bool | None = None
    temperature: float | None = None
    attention_temperature: float = 1.0
    denoise: Denoise | None = None
    denoise_levels: int | None = None
    denoise_step: DenoiseStep | None = None
    denoise_clip: bool | None = None
    parameters: ParameterForm | None = None
    learned: LearnedParams | None = None
    batch_size: int = 64

    def settings(self, config: ExperimentConfig) -> Settings:
        """The options with the values of `config.sample` in place of None.

        Raises:
          ValueError: naming the option that is out of range or does not fit the model.
        """
        default = config.sample
        settings = Settings(
            default.guidance if self.guidance is None else self.guidance,
            default.annealed_guidance if self.annealed_guidance is None else self.annealed_guidance,
            default.temperature if self.temperature is None else self.temperature,
            self.attention_temperature,
            *resolved_denoising(config, denoise_fields(self)),
            default.parameters if self.parameters is None else self.parameters,
        )
        check_real("guidance", settings.guidance, minimum=0.0)
        check(
            not settings.annealed_guidance or config.flow.family == "tarflow",
            f"annealed_guidance needs a model of family 'tarflow', got {config.flow.family!r}",
        )
        check_real("temperature", settings.temperature, minimum=0.0)
        check_real("attention_temperature", settings.attention_temperature)
        check(
            settings.attention_temperature > 0,
            f"attention_temperature must be above 0, got {settings.attention_temperature}",
        )
        check_choice("parameters", settings.parameters, choices(ParameterForm))
        check_integer("batch_size", self.batch_size, minimum=1)
        if self.solver is not None and is_approximate(self.solver):
            self._check_one_pass(settings)
        return settings

    def _check_one_pass(self, settings: Settings) -> None:
        """Raises ValueError for options that the estimates of the learned inverse do not follow."""
        largest = 0.0 if self.learned is None else self.learned.max_guidance
        check(
            settings.guidance <= largest,
            f"guidance must be at most {largest:g} with solver 'one-pass', which the learned inverse was trained for, "
            f"got {settings.guidance:g}",
        )
        check(not settings.annealed_guidance, "annealed_guidance must be False with solver 'one-pass', got True")
        check(
            settings.attention_temperature == 1.0,
            f"attention_temperature must be 1 with solver 'one-pass', got {settings.attention_temperature:g}",
        )

    def chosen_solver(self, config: ExperimentConfig) -> AnySolver:
        """The solver, that of the configuration in place of None; ValueError if it needs a calibration."""
        return default_solver(config) if self.solver is None else self.solver


def default_solver(config: ExperimentConfig) -> AnySolver:
    """The solver that `config.sample` names; ValueError if it needs a calibration or a learned inverse."""
    solver = named_solver(config.sample.solver, config.flow)
    check(
        not reads_estimates(solver),
        f"sample.solver {config.sample.solver!r} needs the learned inverse of a run; pass solver and learned",
    )
    return solver
