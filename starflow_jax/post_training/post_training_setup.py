"""The base run, conditions, rewards and devices of post-training, opened and checked before any compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.core.config.train_config import TrainConfig
from starflow_jax.evaluation.rewards.reward import Reward, RewardInputs, open_reward
from starflow_jax.post_training.drawn_samples import Conditions, Sampler
from starflow_jax.post_training.policy_update import METRICS, Objective
from starflow_jax.post_training.preference_pairs import PreferencePairs, read_pairs
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.sample_requests import RunRequest, SolverRequest
from starflow_jax.sampling.solver_choice import choose_solver
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.sharding.layout import Layout, spread
from starflow_jax.sharding.mesh import check_fit, make_layout
from starflow_jax.solvers import AnySolver, is_approximate, reads_estimates
from starflow_jax.training.checkpoints.digests import digest
from starflow_jax.training.checkpoints.finished_run import run_config

IMAGES, CLIPS = 256, 64  # samples of a step


def default_experiment(config: ExperimentConfig, base_step: int, **fields: Any) -> PostTrainingExperiment:
    """The post-training of a run with usual sizes.

    Args:
      config: the base run; base_step: step of its checkpoint.
      **fields: of `PostTrainingExperiment`, in place of the defaults.
    """
    size = CLIPS if config.data.frames else IMAGES
    train = TrainConfig(
        steps=200,
        batch_size=size,
        lr=1e-4,
        min_lr=1e-5,
        warmup=5,
        weight_decay=0.0,
        grad_clip=1.0,
        skip_after=None,  # clip, never skip
        log_every=10,
        checkpoint_every=50,
    )
    name = f"{config.name}-{fields.get('method', 'policy-gradient')}"
    values: dict[str, Any] = {"name": name, "train": train, "group_size": size if _single(fields) else 16}
    values |= {"base_step": base_step, "mesh": config.mesh, "seed": config.seed}
    return PostTrainingExperiment(**{**values, **fields})


def _single(fields: dict[str, Any]) -> bool:
    """Whether all samples share one condition."""
    return len(fields.get("labels", ())) < 2 and len(fields.get("captions", ())) < 2 and fields.get("pairs") is None


@dataclasses.dataclass(frozen=True, eq=False)
class PostTrainingSetup:
    """What post-training reads besides its training state.

    Attributes:
      experiment: the post-training, with the checksum of its base.
      objective: the static part of the update; sampler: draws samples, and holds the reference.
      pairs: of a file, None for samples; pair_text: float32 [n, L, text_dim], states of their captions, None without.
    """

    experiment: PostTrainingExperiment
    objective: Objective
    sampler: Sampler
    pairs: PreferencePairs | None
    pair_text: np.ndarray | None = None

    @classmethod
    def from_base(
        cls,
        workdir: Path,
        experiment: PostTrainingExperiment,
        rewards: Mapping[str, Callable[[RewardInputs], Any]] | None = None,
    ) -> PostTrainingSetup:
        """Opens the base run in `workdir`; its parameters are read last.

        Args:
          rewards: functions by name, in place of registered ones and of files.

        Raises:
          ValueError: there is no such run, files are missing or damaged, or the parts do not fit together.
        """
        check(jax.process_count() == 1, f"post-training runs in one process, got {jax.process_count()}")
        config = run_config(workdir)
        check_trainable(config.flow.quantise, f"workdir {workdir}")
        check_base(config, experiment)
        names = (experiment.reward, *experiment.judges)
        opened = [None if name is None else _reward(name, rewards or {}) for name in names]
        judges = tuple(reward for reward in opened[1:] if reward is not None)
        all_columns = columns(judges, rewarded=True)
        check(
            len(all_columns) == len({*all_columns}),
            "judges must have distinct names that no other column of metrics.csv has, got "
            + ", ".join(judge.column for judge in judges),
        )
        pairs = None if experiment.pairs is None else read_pairs(Path(experiment.pairs), config)
        if pairs is not None:
            experiment = _with_conditions(experiment, pairs)
            check_base(config, experiment)
        layout = make_layout(experiment.mesh)
        size, accumulate = experiment.train.batch_size // experiment.policy.parts, experiment.train.accumulate
        check_fit(layout, config.flow, size, accumulate)
        run = open_run(RunRequest(workdir=workdir, step=experiment.base_step), layout=layout)
        if layout is None:
            # On the device of a restored state, so that both run the same compiled program.
            run = dataclasses.replace(run, params=jax.device_put(run.params, jax.local_devices()[0]))
        found = digest(run.params)
        check(
            experiment.base_digest in ("", found),
            f"workdir {workdir} must hold the parameters that the post-training started from at step {run.step}, got "
            "others",
        )
        experiment = dataclasses.replace(experiment, base_digest=found)
        trained = dataclasses.replace(run.config, name=experiment.name, train=experiment.train, mesh=experiment.mesh)
        conditions = Conditions.of(experiment, run.config)
        solver = _solver(experiment, run)
        sampler = Sampler(experiment, run, conditions, solver, opened[0], judges)
        text = text_states(run.config, pairs.caption) if pairs is not None and run.config.reads_captions else None
        return cls(experiment, Objective.of(experiment, trained, layout), sampler, pairs, text)

    @property
    def layout(self) -> Layout | None:
        """Of the devices, None for one device."""
        return self.objective.layout

    def put(self, batch: Any) -> Any:
        """A batch on the devices."""
        return spread(self.layout, jax.tree.map(np.asarray, batch))


def columns(judges: Sequence[Reward], *, rewarded: bool) -> tuple[str, ...]:
    """The columns of metrics.csv; `rewarded`: whether there is a reward besides the judges."""
    names = [*(("reward",) if rewarded else ()), "kl", *(judge.column for judge in judges)]
    measured = [column for name in names for column in (name, f"{name}_error")]
    return ("step", *measured, "unique", *METRICS, "learning_rate", "images_per_second")


def _reward(name: str, given: Mapping[str, Callable[[RewardInputs], Any]]) -> Reward:
    return Reward(name, given[name]) if name in given else open_reward(name)


def check_base(config: ExperimentConfig, experiment: PostTrainingExperiment) -> None:
    """Raises ValueError unless the flow of a run has samples of the density that it states, under these conditions."""
    flow = config.flow
    check(not config.data.traits.vectors, "post-training needs a run on images or clips, got one on vectors")
    check(
        flow.scale != "unit",
        "post-training needs a flow whose samples have its density; flow.scale 'unit' draws them from a learned prior",
    )
    check(flow.noise_levels is None, f"flow.noise_levels must be None for post-training, got {flow.noise_levels}")
    classes = flow.num_classes or flow.text_dim
    captioned = config.reads_captions
    check(
        not experiment.captions or captioned,
        "captions must be empty for a run that reads none, got " + ", ".join(map(repr, experiment.captions[:1])),
    )
    check(
        bool(experiment.captions) or (experiment.pairs is not None and not experiment.labels) or not captioned,
        "captions must be given for a run that reads them, got none",
    )
    for label in experiment.labels:
        check(
            -1 <= label < max(classes, 0) and not (captioned and label >= 0),
            f"class must be none or from 0 to {classes - 1}, got {label}"
            if classes and not captioned
            else f"class must be none for a run without classes, got {label}",
        )


def _with_conditions(experiment: PostTrainingExperiment, pairs: PreferencePairs) -> PostTrainingExperiment:
    """The experiment with the conditions of the pairs, under which the KL is measured, where it states none."""
    if experiment.labels or experiment.captions:
        return experiment
    captions = tuple(dict.fromkeys(caption for caption in pairs.caption if caption))
    if captions:
        return dataclasses.replace(experiment, captions=captions)
    return dataclasses.replace(experiment, labels=tuple(int(label) for label in np.unique(pairs.label)))


def _solver(experiment: PostTrainingExperiment, run: Run) -> AnySolver:
    def quiet(_: str) -> None:
        """Remarks on the age of a calibration: the flow changes with every update."""

    request = None if experiment.solver is None else SolverRequest(experiment.solver)
    solver = choose_solver(request, run, batch=experiment.train.batch_size, warn=quiet)
    check(
        not (reads_estimates(solver) or is_approximate(solver)),
        f"solver must not start from the learned inverse of the base run, got {experiment.solver!r}",
    )
    return solver
