"""Sampling requests: frozen dataclasses, checked when they are built by a notebook or by the command line."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starflow_jax.core.choices import Denoise, DenoiseStep, ParameterForm, Quantisation, choices
from starflow_jax.core.config.checks import check_choice, check_integer, check_real
from starflow_jax.core.request_errors import require
from starflow_jax.sampling.denoising import check_denoise_fields
from starflow_jax.solvers import AnySolver

FPS_RANGE = (0.01, 240.0)

# Fields of `SampleRequest` for one kind of model.
_IMAGE_FIELDS = ("label",)
_VIDEO_FIELDS = ("image", "continued", "video", "frames", "fps", "aspect", "window", "context", "stream")


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """A request to load a trained model.

    Attributes:
      workdir: the folder of a run.
      model: instead of `workdir`, a folder with a flow, an autoencoder and a text encoder (`model_folder`), or that of
        a run.
      step: of the checkpoint; None for the newest.
      ema: whether to use the exponential moving average of the parameters, where the run has one.
      decoder: an autoencoder that decodes latents in place of the one of the training.
      text_encoder: the folder of the text encoder; None for the one that the configuration names.
      quantise: how the kernels of a float32 model are stored in memory (`FlowConfig.quantise`), by Qwix, without which
        reading the model raises ValueError; None as they are.

    Raises:
      RequestError: not exactly one of `workdir` and `model` is given.
      ValueError: an unknown `quantise`.
    """

    workdir: Path | None = None
    model: Path | None = None
    step: int | None = None
    ema: bool = True
    decoder: Path | None = None
    text_encoder: Path | None = None
    quantise: Quantisation | None = None

    def __post_init__(self) -> None:
        check_choice("quantise", self.quantise, (None, *choices(Quantisation)))
        require(
            (self.model is None) != (self.workdir is None),
            "give either {workdir}, the folder of a run, or {model}, an assembled folder",
        )


@dataclasses.dataclass(frozen=True)
class SolverRequest:
    """A solver by name, with options.

    Attributes:
      name: a registered name (`core.registries.SOLVERS`); None for the solver of the configuration.
      options: values of options that the solver takes: block, modules, tolerance, max_iterations, objective or
        target_error.
    """

    name: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """A request for samples of a model of images or videos; fields that are None take the value of the configuration.

    Attributes:
      num: samples, or samples of every caption.
      candidates: number of samples of every class or caption, of which the likeliest are kept.
      keep: number of candidates that are kept (1).
      captions: captions of the samples; None for none.
      label: images: the index or the name of a class, "all" for the classes in turn (the default), or "none".
      image, continued, video: videos: a file with the first frame; a clip to continue; a clip to translate.
      frames: videos: frames in all, given ones included, counted in pixel space.
      fps: videos: frames per second, from 0.01 to 240.
      aspect: videos: an aspect ratio such as "16:9" of the trained area.
      window, context: videos: frames of a sliding window, and frames that it shares with the window before it.
      stream: videos: whether to finish frame after frame.
      guidance: weight w >= 0 of classifier-free guidance, 0 for none.
      annealed_guidance: TARFlow: whether the weight grows along the sequence.
      temperature: factor of the noise.
      attention_temperature: divides attention logits.
      denoise: the method that removes the training noise.
      denoise_levels, denoise_step, denoise_clip: of an iterative method: the number of noise levels, "ode" or "sde",
        and whether its estimates are clipped to [-1, 1] (`SampleConfig`).
      parameters: "ready", cast and gathered once, or "stored", which needs less memory (`SampleConfig`).
      solver: the solver that inverts blocks.
      seed: of the noise.
      batch_size: samples generated together (64 images or 8 videos).

    Raises:
      RequestError, ValueError: a field is out of range, or fields are mutually exclusive.
    """

    num: int | None = None
    candidates: int | None = None
    keep: int | None = None
    captions: tuple[str, ...] | None = None
    label: int | str | None = None
    image: Path | None = None
    continued: Path | None = None
    video: Path | None = None
    frames: int | None = None
    fps: float | None = None
    aspect: str | None = None
    window: int | None = None
    context: int | None = None
    stream: bool = False
    guidance: float | None = None
    annealed_guidance: bool | None = None
    temperature: float | None = None
    attention_temperature: float = 1.0
    denoise: Denoise | None = None
    denoise_levels: int | None = None
    denoise_step: DenoiseStep | None = None
    denoise_clip: bool | None = None
    parameters: ParameterForm | None = None
    solver: AnySolver | SolverRequest | str | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, ("num", "candidates", "keep", "frames", "window", "context", "batch_size"))
        check_integer("seed", self.seed, minimum=0)
        _check_factors(self)
        check_real("attention_temperature", self.attention_temperature)
        check_parameter_form(self.parameters)
        check_denoise_fields(self)
        require(
            self.keep is None or self.candidates is not None,
            "{keep} requires {candidates}, got {keep} {0} alone",
            self.keep,
        )
        require(
            self.candidates is None or self.num is None,
            "{num} and {candidates} are mutually exclusive: {candidates} sets the number of samples",
        )
        require(
            (self.keep or 1) <= (self.candidates or self.keep or 1),
            "{keep} must be at most {candidates} {0}, got {1}",
            self.candidates,
            self.keep,
        )
        _check_fps(self.fps)
        require(
            self.captions is None or (isinstance(self.captions, tuple) and len(self.captions) > 0),
            "{captions} must be a tuple of at least one caption, got {0!r}",
            self.captions,
        )
        require(self.captions is None or self.label is None, "{captions} and {label} are mutually exclusive")
        require(
            self.label is None or (isinstance(self.label, numbers.Integral | str) and self.label != ""),
            '{label} must be the index or the name of a class, "all" or "none", got {0!r}',
            self.label,
        )
        sources = [name for name in ("image", "continued", "video") if getattr(self, name) is not None]
        require(len(sources) < 2, f"{' and '.join(f'{{{name}}}' for name in sources)} are mutually exclusive")

    def check_kind(self, workdir: Path, *, videos: bool) -> None:
        """Raises RequestError for a field that belongs to the other kind of model (of the run in `workdir`)."""
        for name in _IMAGE_FIELDS if videos else _VIDEO_FIELDS:
            require(
                getattr(self, name) is None or getattr(self, name) is False,  # class 0 is a value
                f"{{{name}}} cannot be used with the run in {{0}}, which is on {{1}}",
                workdir,
                "clips" if videos else "still images",
            )


@dataclasses.dataclass(frozen=True)
class VBenchRequest:
    """Videos of the prompts of VBench; fields that are None take the value of the configuration.

    Attributes:
      prompts: a file DIMENSION.txt with one prompt a line, or a folder of such files.
      out: the folder of the videos, new or that of an earlier call.
      num: videos of a prompt; None for the number that VBench requires.
      scale: the side in pixels of an enlarged pixel.
      write_non_finite: whether videos with values that are not finite are written, as black or white.
      frames, fps, aspect, guidance, temperature, denoise, denoise_levels, denoise_step, denoise_clip, parameters,
        solver, seed, batch_size: as in `SampleRequest`.

    Raises:
      RequestError, ValueError: a field is out of range.
    """

    prompts: Path
    out: Path
    num: int | None = None
    frames: int | None = None
    fps: float | None = None
    aspect: str | None = None
    guidance: float | None = None
    temperature: float | None = None
    denoise: Denoise | None = None
    denoise_levels: int | None = None
    denoise_step: DenoiseStep | None = None
    denoise_clip: bool | None = None
    parameters: ParameterForm | None = None
    solver: AnySolver | SolverRequest | str | None = None
    seed: int = 0
    batch_size: int = 8
    scale: int = 1
    write_non_finite: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self, ("num", "frames", "batch_size", "scale"))
        check_integer("seed", self.seed, minimum=0)
        _check_factors(self)
        check_parameter_form(self.parameters)
        check_denoise_fields(self)
        _check_fps(self.fps)


def check_parameter_form(form: Any) -> None:
    """Raises ValueError unless the form of parameters is None or one of `ParameterForm`."""
    check_choice("parameters", form, (None, *choices(ParameterForm)))


def _check_factors(request: Any) -> None:
    """Raises ValueError unless guidance and temperature are None or finite numbers of at least 0."""
    for name in ("guidance", "temperature"):
        if getattr(request, name) is not None:
            check_real(name, getattr(request, name), minimum=0.0)


def _check_numbers(request: Any, names: tuple[str, ...]) -> None:
    """Raises ValueError unless the fields are None or integers of at least 1."""
    for name in names:
        value = getattr(request, name)
        if value is not None:
            check_integer(name, value, minimum=1)


def _check_fps(fps: float | None) -> None:
    low, high = FPS_RANGE
    require(fps is None or low <= fps <= high, "{fps} must be from {0:g} to {1:g}, got {2:g}", low, high, fps)
