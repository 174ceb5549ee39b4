"""`starflow post-train`: trains a finished run further on a reward or on preferences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, class_choice, integer, real
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.paths import reward_name
from starflow_jax.cli.options.stored import output_file, read_path, run_path, work_path
from starflow_jax.cli.stopped_training import report_stop
from starflow_jax.core.choices import PostTrainingMethod, choices
from starflow_jax.core.registries import REWARDS, SOLVERS

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment_config import ExperimentConfig
    from starflow_jax.core.config.post_training_config import PostTrainingExperiment
    from starflow_jax.post_training.post_train import PostTrained

ORDER = 106
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Trains a copy of a finished flow on a reward, or on pairs of a better and a worse example, and stays close to the flow
it started from. The likelihood of a flow is exact, and so are the ratios of the policy gradient and the log-ratios
whose mean over samples estimates the KL to the frozen reference without bias.

  --method policy-gradient   maximises E[reward] - beta KL by its own samples (--config.policy.beta)
  --method dpo               prefers the better of two samples, ranked by the reward, or of two examples of --pairs

Samples are drawn without guidance and without a temperature, as the likelihood describes them; the reward sees them as
starflow sample shows them, denoised and decoded. --kl-bound ends the training before the KL exceeds it.

The new folder is a run that every other command reads: config.json, checkpoints/, metrics.csv, events/, and
post_training.json, the record of this training. The same command resumes a training that was stopped."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the training; it may be repeated, and later ones win.

examples:
  starflow post-train --workdir runs/digits --out runs/threes --reward digit --class none --target 3 --kl-bound 6
  starflow post-train --workdir runs/moving --out runs/obeying --reward motion --caption captions.txt
  starflow post-train --workdir runs/photos --out runs/bright --reward rewards.py:brightness --class all
  starflow post-train --workdir runs/digits --out runs/preferred --method dpo --pairs pairs.npz
  starflow sample --workdir runs/threes --class none --num 64 --out threes.png
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "post-train",
        help="train a finished run on a reward or on preferences",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    option = parser.add_argument
    option("--workdir", required=True, type=run_path, metavar="DIR", help="folder of the finished run, the reference")
    option("--out", required=True, type=work_path, metavar="DIR", help="folder of the new run: new, empty, or its own")
    option(
        "--step",
        type=integer(0, 2**31 - 1),
        metavar="N",
        help="checkpoint of the finished run (default: that of the training so far, else the newest)",
    )
    names = ", ".join(REWARDS.names())
    option(
        "--reward",
        type=reward_name,
        metavar="NAME",
        help=f"what samples are rewarded for: {names}; FILE.py:FUNCTION or MODULE:FUNCTION of the user's own, which "
        "reads the samples and returns a number for each; or clip:MODULE:FUNCTION, which returns features of pixels "
        "and of captions",
    )
    option(
        "--judge",
        type=reward_name,
        action="append",
        metavar="NAME",
        help="a reward that is measured and never trained on; may be repeated",
    )
    option(
        "--method",
        type=choice(*choices(PostTrainingMethod)),
        metavar="NAME",
        help="policy-gradient (default) or dpo",
    )
    option(
        "--pairs",
        type=read_path,
        metavar="FILE.npz",
        help="dpo: pairs in place of samples that are ranked by the reward: arrays winner and loser, with label or "
        "caption",
    )
    option(
        "--class",
        dest="label",
        type=class_choice,
        metavar="N|all|none",
        help="class of the samples: an index or name, all classes in turn (default), or none",
    )
    option(
        "--caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="caption of the samples, or a file with one a line; may be repeated, and groups take them in turn",
    )
    option("--target", type=integer(0), metavar="N", help="class that the reward wants (default: that of the sample)")
    option(
        "--kl-bound",
        type=real(above=True),
        metavar="NATS",
        help="end before KL(new || reference), estimated by the samples of a step, exceeds this (default: no bound)",
    )
    option("--solver", type=choice(*SOLVERS.names()), metavar="NAME", help="solver of the samples (default: the run's)")
    option("--json", type=output_file, metavar="FILE", help="also write the final results as JSON")
    option("--quiet", action="store_true", help="show neither a progress bar nor lines of metrics")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from starflow_jax.core.figures import finite, write_json
    from starflow_jax.evaluation.rewards.reward import Reward
    from starflow_jax.post_training.drawn_samples import Sampler
    from starflow_jax.post_training.post_train import post_train, refuse_bound
    from starflow_jax.post_training.post_train_request import PostTrainRequest
    from starflow_jax.post_training.post_training_setup import PostTrainingSetup
    from starflow_jax.training import Checkpoints
    from starflow_jax.training.checkpoints.post_training_record import claim_post_training
    from starflow_jax.training.checkpoints.resume import restore_newest
    from starflow_jax.training.checkpoints.workdir import in_use

    with sentences():
        experiment = _experiment(arguments)
    request = PostTrainRequest(arguments.workdir, arguments.out, experiment, progress=not arguments.quiet)
    starting = (PostTrainingSetup.from_base, claim_post_training, in_use, restore_newest)
    running = (
        Reward.__call__,
        Sampler.__call__,
        refuse_bound,
        Checkpoints.save,
        Checkpoints.check,
        Checkpoints.__exit__,
    )
    with sentences(*starting, *running):
        done = post_train(request)
    if arguments.json is not None:
        figures = {
            "name": experiment.name,
            "folder": str(done.path),
            "base_step": experiment.base_step,
            "step": done.step,
            "steps": experiment.train.steps,
            "ending": done.ending,
            "seconds": done.seconds,
            "first": dict(done.first),
            "last": dict(done.last),
        }
        write_json(arguments.json, finite(figures))
    if done.ending == "signal":
        return report_stop(done.stopped_by, done.step, experiment.train.steps)
    _print(done, experiment)
    return 0


def _print(done: PostTrained, experiment: PostTrainingExperiment) -> None:
    how = "" if done.ending == "steps" else f", the last one within the KL of {experiment.kl_bound:g} nats"
    print(f"{done.path}: step {done.step} of {experiment.train.steps}{how}")
    names = [name for name in done.last if f"{name}_error" in done.last]
    for name in names:
        before = f", before {done.first[name]:.4f} ± {done.first[f'{name}_error']:.4f}" if name in done.first else ""
        unit = " nats (mean of log p - log p_ref over samples)" if name == "kl" else ""
        print(f"{name} {done.last[name]:.4f} ± {done.last[f'{name}_error']:.4f}{unit}{before if name != 'kl' else ''}")
    print(f"distinct samples {100 * done.last['unique']:.1f} % of {experiment.train.batch_size}")


def _experiment(arguments: argparse.Namespace) -> PostTrainingExperiment:
    """The training that the folder records, or that of the options, with the overrides.

    Raises:
      ValueError: there is no such run or checkpoint, or an option or override is out of range.
    """
    import dataclasses

    from starflow_jax.core.config import apply_overrides, build
    from starflow_jax.core.config.post_training_config import PostTrainingExperiment
    from starflow_jax.post_training.post_training_setup import check_base, default_experiment
    from starflow_jax.training.checkpoints.finished_run import newest_step, run_config
    from starflow_jax.training.checkpoints.post_training_record import read_post_training

    config = run_config(arguments.workdir)
    fields = _fields(arguments, config)
    recorded = read_post_training(arguments.out)
    if recorded is not None:
        _check_code(recorded, arguments)
        fields = {name: value for name, value in fields.items() if name != "labels" or arguments.label is not None}
        experiment = dataclasses.replace(recorded, **fields)
    else:
        if fields.get("reward") is None and fields.get("pairs") is None:
            raise CommandError("--reward is required without --pairs, got none")
        step = newest_step(arguments.workdir) if arguments.step is None else arguments.step
        experiment = default_experiment(config, **{"base_step": step, **fields})
    values = apply_overrides(dataclasses.asdict(experiment), arguments.overrides, PostTrainingExperiment)
    built = build(PostTrainingExperiment, values)
    check_base(config, built)
    return built


def _check_code(recorded: PostTrainingExperiment, arguments: argparse.Namespace) -> None:
    """Raises CommandError where a recorded reward is a file or a module: only a command line names code to execute."""
    for option, names, given in (
        ("--reward", (recorded.reward or "",), arguments.reward),
        ("--judge", recorded.judges, arguments.judge),
    ):
        code = [name for name in names if ":" in name]
        if code and given is None:
            raise CommandError(f"{option} {code[0]} must be given again: the record of a folder executes no code")


def _fields(arguments: argparse.Namespace, config: ExperimentConfig) -> dict[str, Any]:
    """The fields of the experiment that the options state."""
    from starflow_jax.sampling.image_requests import class_index

    fields: dict[str, Any] = {
        "reward": arguments.reward,
        "judges": None if arguments.judge is None else tuple(arguments.judge),
        "method": arguments.method,
        "pairs": None if arguments.pairs is None else str(Path(arguments.pairs)),
        "target": arguments.target,
        "kl_bound": arguments.kl_bound,
        "solver": arguments.solver,
        "base_step": arguments.step,
    }
    if arguments.caption is not None:
        fields["captions"] = tuple(read_captions(arguments.caption))
        if arguments.label is not None:
            raise CommandError("--class and --caption are mutually exclusive")
    elif arguments.label is not None or config.flow.num_classes:
        label = class_index(config, "all" if arguments.label is None else arguments.label)
        every = range(config.flow.num_classes or config.flow.text_dim)
        fields["labels"] = tuple(every) if label == "all" else (-1,) if label == "none" else (int(label),)
    if arguments.pairs is not None and arguments.label is None:
        fields.pop("labels", None)
    return {name: value for name, value in fields.items() if value is not None}
