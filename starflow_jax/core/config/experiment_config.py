"""Configuration of an experiment: the flow, its data, its training, sampling and evaluation.

Every dataclass validates its own fields; `ExperimentConfig` also validates their combinations.
"""

from __future__ import annotations

import dataclasses

from starflow_jax.core.choices import Denoise, DenoiseStep, ParameterForm, Quantisation
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.mesh_config import MeshConfig
from starflow_jax.core.config.train_config import TrainConfig
from starflow_jax.core.registries import SOLVERS


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Captions of a small vocabulary; each word is a one-hot text state (`models.text.words`).

    Attributes:
      vocabulary: the `flow.text_dim` words; captions are padded to `flow.text_length` words.
    """

    vocabulary: tuple[str, ...]

    def __post_init__(self) -> None:
        check(len(self.vocabulary) > 0, "vocabulary must contain at least one word, got none")
        for word in self.vocabulary:
            check(word.split() == [word], f"vocabulary must contain single words, got {word!r}")
        repeated = {word for word in self.vocabulary if self.vocabulary.count(word) > 1}
        check(not repeated, f"vocabulary must contain every word once, got {', '.join(sorted(repeated))} again")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Default options of sampling, which a call may override.

    Attributes:
      num: number of images; guidance: weight w of classifier-free guidance, 0 for none.
      annealed_guidance: TARFlow: whether the weight of token j of N is w j / (N - 1), which grows along the sequence.
      solver: the solver that inverts blocks, a name in `registries.SOLVERS`; "auto" chooses by the run's calibration.
      temperature: factor of the noise z.
      denoise: the method that removes the training noise, "none", "score" or "learned"; and, for flows with
        `flow.noise_levels`, "iterative" (over many noise levels, by the score of the flow) or "iterative-learned" (by
        its learned denoiser).
      denoise_levels: number of noise levels of an iterative method; None for t1 / t0.
      denoise_step: its step between two levels, "ode" or "sde"; denoise_clip: whether its estimates of the clean data
        are clipped to [-1, 1] at every level.
      parameters: what the loops of an inverse read: "ready", parameters that were cast to `flow.dtype` and gathered
        over `mesh.fsdp` once beforehand; or "stored", parameters that are cast and gathered at every use, which is
        slower and needs less memory. Samples are the same.
    """

    num: int = 64
    guidance: float = 0.0
    annealed_guidance: bool = False
    solver: str = "sequential"
    temperature: float = 1.0
    denoise: Denoise = "none"
    denoise_levels: int | None = None
    denoise_step: DenoiseStep = "ode"
    denoise_clip: bool = False
    parameters: ParameterForm = "ready"

    def __post_init__(self) -> None:
        check_integer("num", self.num, minimum=1)
        check_real("guidance", self.guidance, minimum=0.0)
        check_real("temperature", self.temperature, minimum=0.0)
        if self.denoise_levels is not None:
            check_integer("denoise_levels", self.denoise_levels, minimum=1)
        check_choices(self)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on held-out images.

    Attributes:
      draws: number of independent samples of the dequantisation noise.
      batch_size: images per batch.
      held_out: number of images or clips that are evaluated during training (`train.evaluate_every`).
    """

    draws: int = 4
    batch_size: int = 256
    held_out: int = 512

    def __post_init__(self) -> None:
        check_integer("draws", self.draws, minimum=1)
        check_integer("held_out", self.held_out, minimum=1)
        check_integer("batch_size", self.batch_size, minimum=1)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, with everything that determines its results.

    Attributes:
      name: name of the experiment; flow, data, train, sample, evaluate: its parts.
      mesh: layout of a run over devices; it affects speed, not results.
      text: vocabulary of captions; None for a flow without captions of a small vocabulary.
      seed: of the initial parameters, the order of the data, and all noise; 0 to 2**32 - 1.
    """

    name: str
    flow: FlowConfig
    data: DataConfig
    train: TrainConfig
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    text: TextConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        # A trained run, whose levels are recorded, may name a solver of an experiment file that is not imported here.
        if self.data.levels is None:
            SOLVERS.check("sample.solver", self.sample.solver)
        words = None if self.text is None else len(self.text.vocabulary)
        check(
            words in (None, self.flow.text_dim),
            f"flow.text_dim must be the {words} words of text.vocabulary, got {self.flow.text_dim}",
        )
        parts = (self.data, *self.data.mixture)
        worded = [part.source for part in parts if part.traits.captions == "words"]
        check(
            words is not None or not worded,
            f"text.vocabulary is required for the captions of data.source {', '.join(map(repr, worded))}, got "
            "text=None",
        )
        self._check_text_encoder()
        check(
            self.flow.token_classes == 0 or self.flow.default_classes is not None,
            "flow.token_classes needs flow.default_classes in an experiment, whose data have no classes of single "
            f"tokens, got {self.flow.token_classes} and None",
        )
        for part in self.data.mixture:
            check(
                (part.batch_size or 0) % self.train.accumulate == 0,
                "train.accumulate must divide every batch size of data.mixture, "
                f"got accumulate={self.train.accumulate} for a batch of {part.batch_size}",
            )
        longest = max((frames for _, frames, _ in self.train.curriculum), default=0)
        check(
            longest <= self.data.frames,
            f"train.curriculum must have at most data.frames={self.data.frames} frames, got {longest}",
        )
        check(
            self.train.language_model is None or self.flow.language_model is not None,
            f"train.language_model needs flow.language_model, got None for {self.train.language_model!r}",
        )
        needed = "none" if self.flow.pixel_map is not None and self.flow.pixel_map.kind == "affine" else "uniform"
        check(
            self.flow.pixel_map is None or (self.data.noise == needed and not self.data.frames),
            f"flow.pixel_map needs {'vectors' if needed == 'none' else 'still images'} with data.noise {needed!r}, got "
            f"noise={self.data.noise!r} and frames={self.data.frames}",
        )
        gaussian = self.data.noise == "gaussian"
        has_denoiser = self.flow.denoiser is not None
        check(
            gaussian or not has_denoiser,
            f"flow.denoiser needs data.noise 'gaussian' (it learns to remove it), got {self.data.noise!r}",
        )
        check(
            gaussian or not self.train.noise_weight,
            f"train.noise_weight needs data.noise 'gaussian', got {self.data.noise!r}",
        )
        self._check_noise_levels()
        check(
            self.data.label_drop == 0 or self.flow.num_classes > 0 or self.flow.text_dim > 0,
            f"data.label_drop needs flow.num_classes or flow.text_dim above 0, got label_drop={self.data.label_drop}",
        )
        check(
            self.sample.denoise not in ("learned", "iterative-learned") or has_denoiser,
            f"sample.denoise {self.sample.denoise!r} needs flow.denoiser, got None",
        )
        check(
            not self.sample.denoise.startswith("iterative") or self.flow.noise_levels is not None,
            f"sample.denoise {self.sample.denoise!r} needs flow.noise_levels, got None",
        )
        check(
            not (self.sample.denoise_clip and self.data.on_latents),
            "sample.denoise_clip must be False for latents, which have no bounds",
        )
        check(
            not self.sample.annealed_guidance or self.flow.family == "tarflow",
            f"sample.annealed_guidance needs flow.family 'tarflow', got {self.flow.family!r}",
        )
        check(
            self.sample.denoise == "none" or gaussian,
            f"sample.denoise {self.sample.denoise!r} needs data.noise 'gaussian', got {self.data.noise!r}",
        )

    @property
    def reads_captions(self) -> bool:
        """Whether the flow reads captions, by a vocabulary or a text encoder."""
        return self.text is not None or self.data.text_encoder is not None

    @property
    def num_classes(self) -> int:
        """Number of classes that the flow reads, as labels or as one-hot texts; 0 for captions or no condition."""
        return self.flow.num_classes or (0 if self.reads_captions else self.flow.text_dim)

    def _check_noise_levels(self) -> None:
        levels, train = self.flow.noise_levels, self.train
        if levels is None:
            check(
                (train.level_distribution, train.level_weight) == ("uniform", "level"),
                "train.level_distribution and train.level_weight need flow.noise_levels, got None for "
                f"{train.level_distribution!r} and {train.level_weight!r}",
            )
            return
        check(
            self.data.noise == "gaussian" and self.data.noise_std == levels[1],
            f"data.noise must be 'gaussian' and data.noise_std the highest of flow.noise_levels {levels}, got noise "
            f"{self.data.noise!r} and noise_std={self.data.noise_std}",
        )
        check(not self.train.noise_weight, "train.noise_weight must be False with flow.noise_levels; use level_weight")
        check(
            not self.train.latent_norm or self.flow.denoiser is None,
            "train.latent_norm must be 0 for a denoiser with flow.noise_levels, which learns the gradient of the "
            f"likelihood alone, got {self.train.latent_norm:g}",
        )
        parts = [part for part in (self.data, *self.data.mixture) if part.captions.noise_level]
        check(
            not parts, "data.captions.noise_level must be False with flow.noise_levels, which every block reads itself"
        )

    def _check_text_encoder(self) -> None:
        path = self.data.text_encoder
        if path is None:
            return
        check(self.text is None, f"text must be None with data.text_encoder {path!r}, got a vocabulary")
        check(self.flow.text_dim > 0, f"data.text_encoder needs flow.text_dim above 0, got 0 for {path!r}")
        parts = self.data.mixture or (self.data,)
        without = sorted({part.source for part in parts if part.traits.captions == "none"})
        check(not without, f"data.text_encoder requires captions, and data.source {without} has none")


def with_quantise(config: ExperimentConfig, scheme: Quantisation | None) -> ExperimentConfig:
    """The experiment whose flow stores its kernels in this way (`FlowConfig.quantise`); None: as float32."""
    return dataclasses.replace(config, flow=dataclasses.replace(config.flow, quantise=scheme))
