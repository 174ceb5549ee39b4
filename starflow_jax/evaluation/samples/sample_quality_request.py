"""The request of `starflow evaluate --metrics`: metrics of generated images for several guidance weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.core.choices import Denoise, DenoiseStep, ParameterForm, Resize, Split
from starflow_jax.core.registries import METRICS
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.evaluation.evaluation_requests import EvaluateRequest
from starflow_jax.evaluation.samples.metrics.metric import metric_spec
from starflow_jax.evaluation.samples.sample_quality_defaults import BATCH, BITS, CHUNK, FOLDER, NUM_SAMPLES
from starflow_jax.sampling.denoising import check_denoise_fields
from starflow_jax.sampling.sample_requests import SolverRequest, check_parameter_form


@dataclasses.dataclass(frozen=True)
class SampleQualityRequest(EvaluateRequest):
    """Metrics of generated images against real images.

    Attributes:
      metrics: registered metrics of samples, and "bpd" for bits/dim, to which `split`, `batch` and `draws` apply.
      num_samples: images for every guidance; guidance: weights, empty for the configuration's.
      features: the feature network: a file of Inception weights, "digits", or "module:function"; None for "digits" of a
        run on digits. resize: of the input of Inception.
      reference: split of the run's data to compare with, None for train; real: a folder of images or an .npz file to
        compare with instead.
      clip: "module:function" from (images, captions) to features of both, for metrics of captions.
      captions: that images are generated from, in turn; text_encoder: that reads them.
      decoder: autoencoder that decodes latents, instead of the run's.
      out: folder of results and stored features; None for `quality` in `workdir`.
      chunk: images in a file of features; sample_batch: images generated at a time, None for 64.
      annealed_guidance, temperature, attention_temperature, denoise, denoise_levels, denoise_step, denoise_clip,
        parameters: as for `sampling.sample`; None for the configuration's.
      solver: and its options; by default the configuration's.
    """

    metrics: tuple[str, ...]
    num_samples: int = NUM_SAMPLES
    guidance: tuple[float, ...] = ()
    features: str | None = None
    resize: Resize | None = None
    reference: Split | None = None
    real: Path | None = None
    clip: str | None = None
    captions: tuple[str, ...] | None = None
    text_encoder: Path | None = None
    decoder: Path | None = None
    out: Path | None = None
    chunk: int = CHUNK
    sample_batch: int | None = None
    annealed_guidance: bool | None = None
    temperature: float | None = None
    attention_temperature: float | None = None
    denoise: Denoise | None = None
    denoise_levels: int | None = None
    denoise_step: DenoiseStep | None = None
    denoise_clip: bool | None = None
    parameters: ParameterForm | None = None
    solver: SolverRequest = dataclasses.field(default_factory=SolverRequest)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameter_form(self.parameters)
        check_denoise_fields(self)
        for name, minimum in (("num_samples", 16), ("chunk", 16)):
            value: Any = getattr(self, name)
            require(value >= minimum, f"{{{name}}} must be an integer from {minimum}, got {{0!r}}", value)
        require(
            len(set(self.guidance)) == len(self.guidance),
            "{guidance} must not repeat a weight, got {0}",
            self.guidance,
        )
        self._check_metrics()
        require(
            self.real is None or self.reference is None,
            "{real} and {reference} are mutually exclusive, got both",
        )
        if BITS not in self.metrics:
            for name in ("draws", "batch", "noise_level"):
                require(
                    getattr(self, name) is None,
                    f"{{{name}}} requires {{metrics}} {BITS}, got {{metrics}} {{0}}",
                    ",".join(self.metrics),
                )
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError("{out} must name a folder, got the file {0}", self.folder)

    def _check_metrics(self) -> None:
        allowed = (*METRICS.names(), BITS)
        valid = all(name in allowed and self.metrics.count(name) == 1 for name in self.metrics)
        require(valid, "{metrics} must be a selection of {0}, each once, got {1!r}", ", ".join(allowed), self.metrics)
        require(
            len(self.sample_metrics) > 0,
            "{metrics} must include a metric of samples ({0}), got bpd alone; omit {metrics} for bits/dim",
            ", ".join(METRICS.names()),
        )
        of_captions = [name for name in self.sample_metrics if metric_spec(name).needs == "captions"]
        require(
            bool(of_captions) == (self.clip is not None),
            "{metrics} {0} and {clip} MODULE:FUNCTION must be given together, got one of them",
            of_captions[0] if of_captions else "clip",
        )
        require(
            not of_captions or self.captions is not None,
            "{metrics} {0} needs {captions}",
            of_captions[0] if of_captions else "",
        )

    @property
    def sample_metrics(self) -> list[str]:
        """The metrics that are computed of samples."""
        return [name for name in self.metrics if name != BITS]

    @property
    def folder(self) -> Path:
        """The folder of results and features."""
        return self.out if self.out is not None else self.workdir / FOLDER

    @property
    def batch_size(self) -> int:
        """Images that are generated at a time."""
        return self.sample_batch or min(BATCH, self.num_samples)
