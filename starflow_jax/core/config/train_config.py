"""Configuration of training: optimisation, checkpoints and records."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.choices import LearningRateDecay, LevelDistribution, LevelWeight, Schedule
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.optimizer_config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, checkpoints and records (specification, section 7).

    Attributes:
      steps: total number of updates; batch_size: images or clips per update.
      curriculum: stages (updates, frames, batch_size) that precede the main stage and count towards `steps`. Each
        trains on shorter clips, or on still images of 1 frame (from images to video, arXiv 2511.20462). Empty for none.
      lr, min_lr, warmup: peak learning rate, final learning rate, and updates of warm-up; schedule: determines the rate
        at which the warm-up starts, "tarflow" (min_lr) or "starflow" (min(min_lr, 1e-6)).
      decay: shape of the learning rate after the warm-up: "cosine" from lr to min_lr; "linear", which stays at lr and
        falls linearly to min_lr in the last `decay_updates` updates; or "constant".
      decay_updates: number of updates in which the learning rate of decay "linear" falls.
      optimizer: of the flow, by name, with its own options (`core.config.optimizer_config`).
      betas, weight_decay: of AdamW, for the flow. Weight decay applies to every parameter, as in the original.
      denoiser_lr, denoiser_betas: of the learned denoiser's own AdamW; its learning rate is constant.
      grad_clip: largest global norm of a gradient (separate for flow and denoiser); 0 for no limit.
      skip_after: after this many updates, an update whose norm exceeds grad_clip is skipped; None never skips.
      latent_norm: weight of the mean square of the tokens that enter the blocks.
      noise_weight: whether the objective is weighted by sigma_n / 0.3 (noise-level conditioning, specification,
        section 2).
      level_distribution, level_weight: of a flow with `flow.noise_levels`, the distribution of the noise level of an
        example, "uniform", "linear" or "edm", and the weight of its loss, "ones", "level", "square" or "normalised"
        (specification, section 6).
      ema: decay of the exponential moving average of the parameters; 0 for none.
      accumulate: number of microbatches whose gradients are accumulated in an update; it saves memory and leaves the
        update unchanged.
      steps_per_call: updates per call of the compiled program. It affects speed, not results.
      log_every, checkpoint_every, sample_every: updates between rows of metrics, checkpoints, and callbacks.
      evaluate_every: updates between evaluations of held-out data; 0 for never.
      keep: number of newest checkpoints to keep; keep_best: number of further checkpoints to keep, those with the
        lowest best_metric.
      best_metric: "loss", "bits_per_dim" (over the updates since the last row) or "held_out_bits_per_dim"; a
        checkpoint is a candidate only if the metric was measured at its step.
      max_skipped: number of consecutive skipped updates after which a run stops; 0 for never.
      language_model: folder of a pretrained Gemma 2 or 3 whose layers initialise the deep block
        (`porting.gemma`); it must have the shape of `flow.language_model`. None for random initialisation.
      language_model_differs: whether they are used even if the block computes a different function than that model.
    """

    steps: int
    batch_size: int
    lr: float
    curriculum: tuple[tuple[int, int, int], ...] = ()
    min_lr: float = 1e-6
    warmup: int = 0
    schedule: Schedule = "tarflow"
    decay: LearningRateDecay = "cosine"
    decay_updates: int = 0
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    denoiser_lr: float = 1e-4
    denoiser_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 0.0
    skip_after: int | None = 100
    latent_norm: float = 0.0
    noise_weight: bool = False
    level_distribution: LevelDistribution = "uniform"
    level_weight: LevelWeight = "level"
    ema: float = 0.0
    accumulate: int = 1
    steps_per_call: int = 1
    log_every: int = 100
    checkpoint_every: int = 1000
    sample_every: int = 1000
    evaluate_every: int = 0
    keep: int = 2
    keep_best: int = 0
    best_metric: Literal["loss", "bits_per_dim", "held_out_bits_per_dim"] | None = None
    max_skipped: int = 0
    language_model: str | None = None
    language_model_differs: bool = False

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "steps_per_call",
            "log_every",
            "checkpoint_every",
            "sample_every",
            "keep",
        ):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("warmup", "evaluate_every", "keep_best", "max_skipped"):
            check_integer(name, getattr(self, name), minimum=0)
        if self.skip_after is not None:
            check_integer("skip_after", self.skip_after, minimum=0)
        for name in ("lr", "min_lr", "weight_decay", "denoiser_lr", "grad_clip", "latent_norm", "ema"):
            check_real(name, getattr(self, name), minimum=0.0)
        # Counters on the device are int32; a call of the compiled program holds its batches in memory.
        for name, bound in (("steps", 2**31), ("skip_after", 2**31), ("batch_size", 2**20), ("steps_per_call", 2**20)):
            value = getattr(self, name)
            check(value is None or value < bound, f"{name} must be below {bound}, got {value}")
        for stage in self.curriculum:
            for name, value in zip(("updates", "frames", "batch_size"), stage, strict=True):
                check_integer(f"curriculum {name}", value, minimum=1)
        for size in (self.batch_size, *(size for _, _, size in self.curriculum)):
            check(
                size % self.accumulate == 0,
                f"accumulate must divide every batch size, got accumulate={self.accumulate} for a batch of {size}",
            )
        staged = sum(updates for updates, _, _ in self.curriculum)
        check(
            staged < self.steps or not self.curriculum,
            f"curriculum must leave some of steps={self.steps} updates, got stages of {staged}",
        )
        check(self.warmup <= self.steps, f"warmup must be at most steps={self.steps}, got {self.warmup}")
        check_decay(self.decay, self.decay_updates, total=self.steps, warmup=self.warmup)
        check(
            self.optimizer.name != "schedule-free" or self.decay == "constant",
            f"decay must be 'constant' for optimizer.name 'schedule-free', got {self.decay!r}",
        )
        check(
            self.optimizer.name != "schedule-free" or self.ema == 0.0,
            f"ema must be 0 for optimizer.name 'schedule-free', which averages by itself, got {self.ema}",
        )
        check(self.min_lr <= self.lr, f"min_lr must be at most lr={self.lr}, got {self.min_lr}")
        check(self.ema < 1.0, f"ema must be below 1, got {self.ema}")
        check_choices(self)
        check(
            (self.keep_best > 0) == (self.best_metric is not None),
            f"keep_best and best_metric must be set together, got {self.keep_best} and {self.best_metric!r}",
        )
        check(
            self.best_metric != "held_out_bits_per_dim" or self.evaluate_every > 0,
            "best_metric 'held_out_bits_per_dim' needs evaluate_every above 0, got 0",
        )
        for name in ("betas", "denoiser_betas"):
            for beta in getattr(self, name):
                check_real(name, beta, minimum=0.0)
                check(beta < 1.0, f"{name} must be below 1, got {getattr(self, name)}")

    def stage(self, step: int) -> tuple[int, int | None, int]:
        """The stage of update `step`: the first step after the stage, its frames (None: all) and its batch size."""
        end = 0
        for updates, frames, batch_size in self.curriculum:
            end += updates
            if step < end:
                return end, frames, batch_size
        return self.steps, None, self.batch_size


def check_decay(decay: str, updates: int, *, total: int, warmup: int) -> None:
    """Checks the number of updates of the decay of a learning rate, which only the linear one has.

    Raises:
      ValueError: there is none for a linear decay, one for another decay, or one that does not fit after the warm-up.
    """
    check_integer("decay_updates", updates, minimum=0)
    if decay != "linear":
        check(updates == 0, f"decay_updates applies to decay 'linear', got {updates} for {decay!r}")
        return
    check(
        0 < updates <= total - warmup,
        f"decay_updates must be from 1 to the {total - warmup} updates after the warm-up, got {updates}",
    )


# Fields that only the training of a flow from its beginning reads, and no training that starts from a finished run.
FOR_TRAINING_OF_FLOWS = (
    "curriculum",
    "latent_norm",
    "noise_weight",
    "denoiser_lr",
    "denoiser_betas",
    "steps_per_call",
    "sample_every",
    "evaluate_every",
    "keep_best",
    "best_metric",
    "max_skipped",
    "language_model",
    "language_model_differs",
)


def check_unread(train: TrainConfig, *names: str, for_what: str) -> None:
    """Raises ValueError unless fields that a training does not read have their default.

    Args:
      names: of the fields; for_what: what is trained, the end of a clause.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name in names:
        value = getattr(train, name)
        check(value == defaults[name], f"train.{name} must be {defaults[name]!r} for {for_what}, got {value!r}")
