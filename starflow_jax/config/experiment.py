"""What an experiment is: the flow, its data, and how it is trained, sampled and scored.

Every dataclass checks itself; `ExperimentConfig` also checks the combinations.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.config.checks import check, check_choice, check_integer, check_real
from starflow_jax.config.flow import FlowConfig


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


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Captions of a small vocabulary, each word a one-hot text state (`text.words`).

    Attributes:
      vocabulary: the words, as many as `flow.text_dim`; captions are padded to `flow.text_length` words.
    """

    vocabulary: tuple[str, ...]

    def __post_init__(self):
        check(len(self.vocabulary) > 0, "vocabulary must hold at least one word, got none")
        for word in self.vocabulary:
            check(word.split() == [word], f"vocabulary must hold single words, got {word!r}")
        twice = {word for word in self.vocabulary if self.vocabulary.count(word) > 1}
        check(not twice, f"vocabulary must hold every word once, got {', '.join(sorted(twice))} again")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation and its records (specification, section 7).

    Attributes:
      steps: updates in all; batch_size: images or clips an update.
      curriculum: stages (updates, frames, batch_size) before the training proper, counted in `steps`: so many updates
        on shorter clips, or stills of 1 frame (from images to video, arXiv 2511.20462). Empty for none.
      lr, min_lr, warmup: highest and last learning rate, updates until the highest; schedule: where the
        warm-up starts, "tarflow" (min_lr) or "starflow" (min(min_lr, 1e-6)).
      betas, weight_decay: of AdamW, for the flow. Weight decay reaches every parameter, as in the original.
      denoiser_lr, denoiser_betas: of the learned denoiser's own AdamW; its rate is constant.
      grad_clip: largest global norm of a gradient (flow and denoiser apart); 0 for no limit.
      skip_after: updates beyond this many are skipped where the norm exceeds grad_clip; None never skips.
      latent_norm: weight of the mean square of the tokens that enter the blocks.
      noise_weight: weigh the objective by sigma_n / 0.3 (noise-level conditioning, specification, section 2).
      ema: decay of the running mean of the parameters; 0 for none.
      steps_per_call: updates in one call of the compiled program. It changes speed, not results.
      log_every, checkpoint_every, sample_every: updates between rows of metrics, checkpoints, callbacks.
      keep: checkpoints kept.
    """

    steps: int
    batch_size: int
    lr: float
    curriculum: tuple[tuple[int, int, int], ...] = ()
    min_lr: float = 1e-6
    warmup: int = 0
    schedule: Literal["tarflow", "starflow"] = "tarflow"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    denoiser_lr: float = 1e-4
    denoiser_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 0.0
    skip_after: int | None = 100
    latent_norm: float = 0.0
    noise_weight: bool = False
    ema: float = 0.0
    steps_per_call: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    sample_every: int = 1000
    keep: int = 2

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "steps_per_call",
            "log_every",
            "checkpoint_every",
            "sample_every",
            "keep",
        ):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("warmup", self.warmup, minimum=0)
        if self.skip_after is not None:
            check_integer("skip_after", self.skip_after, minimum=0)
        for name in ("lr", "min_lr", "weight_decay", "denoiser_lr", "grad_clip", "latent_norm", "ema"):
            check_real(name, getattr(self, name), minimum=0.0)
        # The device counts in int32; a call of the compiled program holds its batches in memory.
        for name, bound in (("steps", 2**31), ("skip_after", 2**31), ("batch_size", 2**20), ("steps_per_call", 2**20)):
            value = getattr(self, name)
            check(value is None or value < bound, f"{name} must be below {bound}, got {value}")
        for stage in self.curriculum:
            for name, value in zip(("updates", "frames", "batch_size"), stage, strict=True):
                check_integer(f"curriculum {name}", value, minimum=1)
        staged = sum(updates for updates, _, _ in self.curriculum)
        check(
            staged < self.steps or not self.curriculum,
            f"curriculum must leave some of steps={self.steps} updates, got stages of {staged}",
        )
        check(self.warmup <= self.steps, f"warmup must be at most steps={self.steps}, got {self.warmup}")
        check(self.min_lr <= self.lr, f"min_lr must be at most lr={self.lr}, got {self.min_lr}")
        check(self.ema < 1.0, f"ema must be below 1, got {self.ema}")
        check_choice("schedule", self.schedule, ("tarflow", "starflow"))
        for name in ("betas", "denoiser_betas"):
            for beta in getattr(self, name):
                check_real(name, beta, minimum=0.0)
                check(beta < 1.0, f"{name} must be below 1, got {getattr(self, name)}")


    def stage(self, step: int) -> tuple[int, int | None, int]:
        """What update number `step` is part of: its stage's first later update, frames (None: all) and batch size."""
        end = 0
        for updates, frames, batch_size in self.curriculum:
            end += updates
            if step < end:
                return end, frames, batch_size
        return self.steps, None, self.batch_size


SOLVERS = ("sequential", "jacobi", "sliding", "selective", "gs-jacobi", "secant", "auto")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How pictures are drawn unless a call says otherwise.

    Attributes:
      num: pictures; guidance: weight w of classifier-free guidance, 0 for none.
      solver: how blocks are inverted, one of `SOLVERS`; "auto" is chosen by the run's calibration.
      temperature: factor of the noise z.
      denoise: what removes the training noise, "none", "score" or "learned".
    """

    num: int = 64
    guidance: float = 0.0
    solver: Literal["sequential", "jacobi", "sliding", "selective", "gs-jacobi", "secant", "auto"] = "sequential"
    temperature: float = 1.0
    denoise: Literal["none", "score", "learned"] = "none"

    def __post_init__(self):
        check_integer("num", self.num, minimum=1)
        check_real("guidance", self.guidance, minimum=0.0)
        check_choice("solver", self.solver, SOLVERS)
        check_real("temperature", self.temperature, minimum=0.0)
        check_choice("denoise", self.denoise, ("none", "score", "learned"))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How the held-out images are scored.

    Attributes:
      draws: independent draws of the dequantisation noise.
      batch_size: images scored at a time.
    """

    draws: int = 4
    batch_size: int = 256

    def __post_init__(self):
        check_integer("draws", self.draws, minimum=1)
        check_integer("batch_size", self.batch_size, minimum=1)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, everything that decides its numbers.

    Attributes:
      name: what the experiment is called; flow, data, train, sample, evaluate: its parts.
      text: how captions are read; None for a flow that reads labels or nothing.
      seed: of the initial parameters, the order of the data, and all noise; 0 to 2**32 - 1.
    """

    name: str
    flow: FlowConfig
    data: DataConfig
    train: TrainConfig
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    text: TextConfig | None = None
    seed: int = 0

    def __post_init__(self):
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        words = None if self.text is None else len(self.text.vocabulary)
        check(
            words in (None, self.flow.text_dim),
            f"flow.text_dim must be the {words} words of text.vocabulary, got {self.flow.text_dim}",
        )
        check(
            self.data.source != "moving_digits" or words is not None,
            "text.vocabulary is needed for the captions of data.source 'moving_digits', got text=None",
        )
        longest = max((frames for _, frames, _ in self.train.curriculum), default=0)
        check(
            longest <= self.data.frames,
            f"train.curriculum must have at most data.frames={self.data.frames} frames, got {longest}",
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
        check(
            self.data.label_drop == 0 or self.flow.num_classes > 0 or self.flow.text_dim > 0,
            f"data.label_drop needs flow.num_classes or flow.text_dim above 0, got label_drop={self.data.label_drop}",
        )
        check(
            self.sample.denoise != "learned" or has_denoiser,
            "sample.denoise 'learned' needs flow.denoiser, got None",
        )
        check(
            self.sample.denoise == "none" or gaussian,
            f"sample.denoise {self.sample.denoise!r} needs data.noise 'gaussian', got {self.data.noise!r}",
        )
