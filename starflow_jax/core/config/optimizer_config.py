"""Configuration of the optimizer of a flow: its name, and the options that only that optimizer has."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real

OptimizerName = Literal["adamw", "lion", "adafactor", "muon", "schedule-free"]


@dataclasses.dataclass(frozen=True)
class LionConfig:
    """Options of Lion (arXiv 2302.06675), whose steps are the signs of an interpolated momentum.

    Attributes:
      betas: weight of the momentum in a step, and decay of the momentum.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        _check_decays("optimizer.lion.betas", self.betas)


@dataclasses.dataclass(frozen=True)
class AdafactorConfig:
    """Options of Adafactor (arXiv 1804.04235), whose second moments of a matrix are a row and a column.

    Attributes:
      decay: exponent c of the decay 1 - n^-c of the second moments after n updates.
      clip: largest root mean square of the step of one parameter array, before the learning rate.
      momentum: decay of the first moments; 0 stores none.
      relative: whether steps are multiplied by the root mean square of the parameter array, at least 1e-3.
      factor_from: smallest size of two array axes whose second moments are factored.
    """

    decay: float = 0.8
    clip: float = 1.0
    momentum: float = 0.9
    relative: bool = False
    factor_from: int = 128

    def __post_init__(self) -> None:
        check_real("optimizer.adafactor.decay", self.decay, minimum=0.0)
        check_real("optimizer.adafactor.clip", self.clip, minimum=0.0)
        check(self.clip > 0.0, f"optimizer.adafactor.clip must be above 0, got {self.clip}")
        _check_decays("optimizer.adafactor.momentum", (self.momentum,))
        check_integer("optimizer.adafactor.factor_from", self.factor_from, minimum=2)


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """Options of Muon, which makes the momentum of a matrix orthogonal by Newton-Schulz iterations.

    It applies to the kernels inside the transformers (q, k and v are three matrices); all other parameters are updated
    by AdamW with `train.betas`.

    Attributes:
      momentum: decay of the momentum; nesterov: whether a step looks one momentum ahead.
      iterations: Newton-Schulz iterations of an update.
      update_rms: root mean square of a step before the learning rate, as in "Muon is scalable for LLM training" (arXiv
        2502.16982): at 0.2 the learning rate and the weight decay of AdamW apply. None for the original factor
        sqrt(max(1, outputs / inputs)) of an orthogonal matrix, which needs a learning rate of its own.
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    update_rms: float | None = 0.2

    def __post_init__(self) -> None:
        _check_decays("optimizer.muon.momentum", (self.momentum,))
        check_integer("optimizer.muon.iterations", self.iterations, minimum=1, maximum=100)
        if self.update_rms is not None:
            check_real("optimizer.muon.update_rms", self.update_rms, minimum=0.0)


@dataclasses.dataclass(frozen=True)
class ScheduleFreeConfig:
    """Options of schedule-free AdamW (arXiv 2405.15682), which averages iterates in place of a decaying learning rate.

    Its parameters, those of checkpoints, are the average x of the paper; gradients are computed at
    y = (1 - beta) z + beta x.

    Attributes:
      beta: weight of the average in y, above 0. The decay of the second moments is the second of `train.betas`.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        _check_decays("optimizer.schedule_free.beta", (self.beta,))
        check(self.beta > 0.0, f"optimizer.schedule_free.beta must be above 0, got {self.beta}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a flow, by name. A learned denoiser keeps AdamW with its own learning rate.

    Attributes:
      name: "adamw" (options: `train.betas`), "lion", "adafactor", "muon" or "schedule-free"; `train.weight_decay` is
        decoupled in all of them.
      moment_dtype: dtype in which first moments and momenta are stored. Second moments are float32: in bfloat16 an
        update by less than 0.4 % of their value would be lost.
      lr_factors: (pattern, factor) pairs: the learning rate of a parameter is multiplied by the factor of the first
        pattern that its path matches, such as ("blocks/0/*", 0.1) or ("*/class_embed", 2.0). A factor of 0 freezes
        parameters, weight decay included.
      lion, adafactor, muon, schedule_free: options of these; only those of `name` may differ from the defaults.
    """

    name: OptimizerName = "adamw"
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    lr_factors: tuple[tuple[str, float], ...] = ()
    lion: LionConfig = dataclasses.field(default_factory=LionConfig)
    adafactor: AdafactorConfig = dataclasses.field(default_factory=AdafactorConfig)
    muon: MuonConfig = dataclasses.field(default_factory=MuonConfig)
    schedule_free: ScheduleFreeConfig = dataclasses.field(default_factory=ScheduleFreeConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        for pattern, factor in self.lr_factors:
            check(bool(pattern), "optimizer.lr_factors must have patterns of parameter paths, got an empty one")
            check_real(f"optimizer.lr_factors of {pattern!r}", factor, minimum=0.0)
        options: dict[str, tuple[object, object]] = {
            "lion": (self.lion, LionConfig()),
            "adafactor": (self.adafactor, AdafactorConfig()),
            "muon": (self.muon, MuonConfig()),
            "schedule-free": (self.schedule_free, ScheduleFreeConfig()),
        }
        for name, (value, default) in options.items():
            field = name.replace("-", "_")
            check(
                name == self.name or value == default,
                f"optimizer.{field} applies to optimizer.name {name!r}, got {value} for {self.name!r}",
            )
        check(
            self.name != "schedule-free" or self.moment_dtype == "float32",
            "optimizer.moment_dtype must be 'float32' for optimizer.name 'schedule-free', which has no first moments",
        )


def _check_decays(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        check_real(name, value, minimum=0.0)
        check(value < 1.0, f"{name} must be below 1, got {values if len(values) > 1 else value}")
