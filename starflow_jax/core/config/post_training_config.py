"""Configuration of post-training: a finished flow that is trained further on a reward or on preferences."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.choices import AdvantageScale, PostTrainingMethod
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.core.config.mesh_config import MeshConfig
from starflow_jax.core.config.train_config import FOR_TRAINING_OF_FLOWS, TrainConfig, check_unread


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy gradient: maximises E[reward] - beta KL(policy || reference), the KL in nats per sample.

    Attributes:
      beta: weight of the KL. With `advantage` "centred" the optimum is the reference tilted by exp(reward / beta).
      advantage: "centred" subtracts the mean of the other samples of a group; "standardised" also divides by the
        standard deviation of the group (GRPO, arXiv 2402.03300), after which beta is in units of that deviation.
      ratio_clip: the ratio of a sample's density to that at its drawing has no gradient beyond 1 +- ratio_clip (PPO,
        arXiv 1707.06347, equation 7).
      reuse: how often the samples of a step are read; parts: the number of updates that each reading is split into.
        With 1 and 1 every update is made on its own samples, and every ratio is 1.
    """

    beta: float = 0.25
    advantage: AdvantageScale = "centred"
    ratio_clip: float = 0.2
    reuse: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check_real("policy.beta", self.beta, minimum=0.0)
        check_real("policy.ratio_clip", self.ratio_clip, minimum=0.0)
        check(self.ratio_clip > 0.0, f"policy.ratio_clip must be above 0, got {self.ratio_clip:g}")
        check_integer("policy.reuse", self.reuse, minimum=1, maximum=1000)
        check_integer("policy.parts", self.parts, minimum=1)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Direct preference optimisation (arXiv 2305.18290), with log-likelihoods per dimension.

    Attributes:
      beta: of the loss -log sigmoid(beta / D ((log p - log p_ref) of the winner - that of the loser)), D dimensions.
    """

    beta: float = 20.0

    def __post_init__(self) -> None:
        check_real("preference.beta", self.beta, minimum=0.0)
        check(self.beta > 0.0, f"preference.beta must be above 0, got {self.beta:g}")


@dataclasses.dataclass(frozen=True)
class PostTrainingExperiment:
    """The training of a finished flow on a reward, or on pairs of a better and a worse example.

    A step draws `train.batch_size` samples of the current flow, in groups of one condition each, and makes
    `policy.reuse * policy.parts` updates on them.

    Attributes:
      name: name of the experiment.
      method: "policy-gradient" or "dpo".
      reward: its name in `registries.REWARDS`, or FILE.py:FUNCTION or MODULE:FUNCTION; None with `pairs`.
      judges: rewards that are measured and never trained on.
      labels: classes of the samples, -1 for none; captions: their captions. Groups take them in turn; empty for a flow
        that reads no condition.
      target: the class that the reward wants to see; None for that of a sample's condition.
      pairs: file of pairs for "dpo"; None ranks samples of the flow by the reward.
      group_size: samples of a group, which share a condition.
      kl_bound: the training ends before KL(policy || reference), estimated by the samples of a step, exceeds so many
        nats; None for no bound.
      solver: the solver that draws samples, by its name; None for that of the run.
      draw_batch: samples that are drawn and scored together; None for all of a step.
      base_step: step of the checkpoint that the training starts from and whose flow is the reference; base_digest:
        checksum of these parameters, "" before the training begins.
      policy, preference, train: its parts. Fields of `train` that have no meaning here must have their default: the
        curriculum, the moving average, calls of several updates, evaluations, the best checkpoints.
      mesh: layout of the training over devices; seed: of the noise, 0 to 2**32 - 1.
    """

    name: str
    train: TrainConfig
    base_step: int
    base_digest: str = ""
    method: PostTrainingMethod = "policy-gradient"
    reward: str | None = None
    judges: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    target: int | None = None
    pairs: str | None = None
    group_size: int = 64
    kl_bound: float | None = None
    solver: str | None = None
    draw_batch: int | None = None
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        check_integer("base_step", self.base_step, minimum=0)
        check_integer("seed", self.seed, minimum=0)
        check(self.seed < 2**32, f"seed must be below 2**32, got {self.seed}")
        if self.kl_bound is not None:
            check_real("kl_bound", self.kl_bound, minimum=0.0)
            check(self.kl_bound > 0.0, f"kl_bound must be above 0, got {self.kl_bound:g}")
        if self.target is not None:
            check_integer("target", self.target, minimum=0)
        check_integer("group_size", self.group_size, minimum=2)
        if self.draw_batch is not None:
            check_integer("draw_batch", self.draw_batch, minimum=1)
        self._check_batch()
        check_unread(self.train, "ema", *FOR_TRAINING_OF_FLOWS, for_what="post-training")
        check(
            self.pairs is None or self.method == "dpo",
            f"pairs needs method 'dpo', got {self.method!r}",
        )
        check(
            self.pairs is not None or self.reward is not None,
            f"reward is required for method {self.method!r} without pairs, got None",
        )
        check(not (self.labels and self.captions), "labels and captions must not both be given")

    def _check_batch(self) -> None:
        size, parts, accumulate = self.train.batch_size, self.policy.parts, self.train.accumulate
        check(
            size % self.group_size == 0,
            f"group_size must divide train.batch_size={size}, got {self.group_size}",
        )
        if self.method == "dpo":
            check(self.group_size % 2 == 0, f"group_size must be even for method 'dpo', got {self.group_size}")
            check(
                (self.policy.reuse, parts) == (1, 1),
                f"policy.reuse and policy.parts must be 1 for method 'dpo', got {self.policy.reuse} and {parts}",
            )
            size //= 2
        check(
            size % (parts * accumulate) == 0,
            f"policy.parts times train.accumulate must divide the {size} "
            f"{'pairs' if self.method == 'dpo' else 'samples'} of a step, got {parts} x {accumulate}",
        )
