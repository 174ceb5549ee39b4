"""Samples that the current flow draws for one step, with their exact log-likelihoods, rewards and figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.rewards.reward import Reward, RewardInputs
from starflow_jax.flows.parameters import Params
from starflow_jax.sampling import image_sampling
from starflow_jax.sampling.image_sampling import Samples
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.videos.video_plan import VideoPlan, plan_videos, text_states
from starflow_jax.sampling.videos.video_sampling import Videos, draw_plan
from starflow_jax.solvers import AnySolver
from starflow_jax.training.step.inputs import condition

# Folded into the seed: the noise of samples is independent of the order of the updates.
_STREAM = 0x706F_6C69
# A policy is the flow itself: samples are drawn without guidance and without a temperature.
_AS_TRAINED: dict[str, Any] = {
    "guidance": 0.0,
    "annealed_guidance": False,
    "temperature": 1.0,
    "attention_temperature": 1.0,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """The k conditions that groups of samples take in turn.

    Attributes:
      labels: int32 [k], -1 for none; captions: k captions, "" for none.
      text: float32 [k, L, text_dim], states of the captions; None without captions.
    """

    labels: np.ndarray
    captions: tuple[str, ...]
    text: np.ndarray | None

    @classmethod
    def of(cls, experiment: PostTrainingExperiment, config: ExperimentConfig) -> Conditions:
        """The conditions of an experiment.

        Raises:
          ValueError: see `text_states`.
        """
        if experiment.captions:
            states = text_states(config, experiment.captions)
            return cls(np.full(len(states), -1, np.int32), experiment.captions, states)
        labels = np.asarray(experiment.labels or (-1,), np.int32)
        return cls(labels, ("",) * len(labels), None)

    def in_turn(self, step: int, groups: int, group_size: int) -> np.ndarray:
        """The condition of every sample of a step, int [groups * group_size]."""
        chosen = (step * groups + np.arange(groups)) % len(self.labels)
        return np.repeat(chosen, group_size)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnSamples:
    """The samples of one step.

    Attributes:
      pixels: uint8 [n, (T,) H, W, C]; x: float32 [n, (T,) H, W, C], before denoising, which the densities are of.
      cond: labels int32 [n], text states float32 [n, L, text_dim], or None.
      log_p, log_ref: float32 [n], log-likelihoods under the flow that drew them and under the reference, in nats.
      reward: float64 [n], None without a reward; judged: float64 [n] by the column of each judge.
    """

    pixels: np.ndarray
    x: np.ndarray
    cond: np.ndarray | None
    log_p: np.ndarray
    log_ref: np.ndarray
    reward: np.ndarray | None
    judged: Mapping[str, np.ndarray]

    @property
    def log_ratio(self) -> np.ndarray:
        """log p - log p_ref of every sample, float64 [n]; its mean is the estimate of the KL."""
        return self.log_p.astype(np.float64) - self.log_ref.astype(np.float64)

    @property
    def kl(self) -> float:
        """The estimate of KL(flow || reference) in nats per sample, unbiased as both densities are exact."""
        return float(self.log_ratio.mean())

    def figures(self) -> dict[str, float]:
        """Means with standard errors over the samples, and the share of distinct ones."""
        columns = {"kl": self.log_ratio, **self.judged}
        if self.reward is not None:
            columns = {"reward": self.reward, **columns}
        figures = {name: float(values.mean()) for name, values in columns.items()}
        figures |= {f"{name}_error": standard_error(values) for name, values in columns.items()}
        flat = self.pixels.reshape(len(self.pixels), -1)
        figures["unique"] = len(np.unique(flat, axis=0)) / len(flat)
        return figures


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Draws the samples of a step, which depend on the parameters, the seed and the step alone.

    Attributes:
      experiment: the post-training; run: the base run, whose parameters are the reference.
      conditions: of the samples; solver: the solver that inverts the flow.
      reward: None for pairs without a reward; judges: further rewards, which are only measured.
    """

    experiment: PostTrainingExperiment
    run: Run
    conditions: Conditions
    solver: AnySolver
    reward: Reward | None
    judges: tuple[Reward, ...]

    def __call__(self, params: Params, step: int) -> DrawnSamples:
        """The samples of the flow with these parameters.

        Raises:
          ValueError: a sample that is not finite, or a reward that fails.
        """
        experiment, config = self.experiment, self.run.config
        size = experiment.train.batch_size
        rows = self.conditions.in_turn(step, size // experiment.group_size, experiment.group_size)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(experiment.seed), _STREAM), step)
        pixels, x, denoised = self._videos(params, key, rows) if config.data.frames else self._images(params, key, rows)
        bad = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
        check(bad == 0, f"the flow drew {bad} of {len(x)} samples that are not finite at step {step}; lower train.lr")
        cond = self.condition(rows)
        inputs = RewardInputs(pixels, denoised, self._wanted(rows), tuple(self.conditions.captions[i] for i in rows))
        return DrawnSamples(
            pixels,
            x,
            cond,
            self.log_likelihoods(params, x, cond),
            self.log_likelihoods(self.run.params, x, cond),
            None if self.reward is None else self.reward(inputs),
            {judge.column: judge(inputs) for judge in self.judges},
        )

    def condition(self, rows: np.ndarray) -> np.ndarray | None:
        """What the flow reads for samples of these conditions."""
        if self.conditions.text is not None:
            return self.conditions.text[rows]
        cond = condition(jnp.asarray(self.conditions.labels[rows]), self.run.config.flow)
        return None if cond is None else np.asarray(cond)

    def log_likelihoods(self, params: Params, x: np.ndarray, cond: np.ndarray | None) -> np.ndarray:
        """log p(x | cond) in nats, float32 [n], by one parallel forward pass."""
        size = self.experiment.draw_batch or len(x)
        return log_likelihoods(params, self.run.config.flow, x, cond, batch_size=size)

    def _wanted(self, rows: np.ndarray) -> np.ndarray:
        target = self.experiment.target
        return self.conditions.labels[rows] if target is None else np.full(len(rows), target, np.int32)

    def _images(self, params: Params, key: jax.Array, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        text = self.conditions.text
        samples: Samples = image_sampling.sample(
            params,
            self.run.config,
            key,
            self.conditions.labels[rows],
            text=None if text is None else text[rows],
            autoencoder=self.run.autoencoder,
            solver=self.solver,
            batch_size=self.experiment.draw_batch or len(rows),
            **_AS_TRAINED,
        )
        return samples.images, samples.noisy, samples.x

    def _videos(self, params: Params, key: jax.Array, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        plan, text = self._plan, self.conditions.text
        assert text is not None  # a flow of clips reads captions
        plan = dataclasses.replace(
            plan,
            captions=tuple(self.conditions.captions[i] for i in rows),
            text=text[rows],
            places=np.arange(len(rows), dtype=np.int32),
            batch_size=min(self.experiment.draw_batch or len(rows), len(rows)),
        )
        videos: Videos = draw_plan(params, key, plan)
        return videos.videos, videos.x, videos.denoised

    @functools.cached_property
    def _plan(self) -> VideoPlan:
        """The plan of one video, whose captions and noise each step replaces."""
        first = self.conditions.captions[:1]
        return plan_videos(
            self.run.config, first, solver=self.solver, autoencoder=self.run.autoencoder, batch_size=1, **_AS_TRAINED
        )
