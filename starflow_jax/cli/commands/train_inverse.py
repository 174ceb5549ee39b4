"""`starflow train-inverse`: trains the learned inverse of a finished run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.stored import output_file, work_path
from starflow_jax.cli.stopped_training import report_stop

if TYPE_CHECKING:
    from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment

ORDER = 105
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Trains a network that imitates the inverse of a run's flow (BiFlow, arXiv 2512.10953), or resumes where an earlier call
stopped. Its estimates of the state after every block serve in two ways:

  --solver verified   the flow verifies them and corrects what is wrong: the samples of the sequential solver to the
                      tolerance, in fewer evaluations the better the network is
  --solver one-pass   the estimates are the samples: fast and approximate

The subfolder inverse/ of the run receives config.json, checkpoints/, metrics.csv and events/ (TensorBoard). Without
overrides the network has the width of the flow's deep block; where the flow reads a condition, it reads a guidance
weight up to 4, too, and half of its pairs of noise and data are drawn by the flow. A run has one learned inverse: to
train another one, remove or rename inverse/ first."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the training; it may be repeated, and later ones win.

examples:
  starflow train-inverse --workdir runs/moving
  starflow train-inverse --workdir runs/digits --config.network.layers=3 --config.train.steps=20000
  starflow sample --workdir runs/moving --caption "a seven moving left" --solver verified --out seven.mp4
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "train-inverse", help="train a network that speeds up sampling", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", required=True, type=work_path, metavar="DIR", help="folder of the run whose flow is inverted")
    option(
        "--step",
        type=integer(0, 2**31 - 1),
        metavar="N",
        help="checkpoint of the flow (default: that of the training so far, else the newest)",
    )
    option("--json", type=output_file, metavar="FILE", help="also write the final results as JSON")
    option("--quiet", action="store_true", help="show neither a progress bar nor lines of metrics")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from starflow_jax.core.figures import write_json
    from starflow_jax.training import Checkpoints
    from starflow_jax.training.checkpoints.resume import restore_newest
    from starflow_jax.training.checkpoints.same_data import check_same_data
    from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use
    from starflow_jax.training.inverse.inverse_setup import InverseSetup
    from starflow_jax.training.inverse.train_inverse import train_inverse
    from starflow_jax.training.inverse.train_inverse_request import TrainInverseRequest

    with sentences():
        experiment = _experiment(arguments)
    request = TrainInverseRequest(arguments.workdir, experiment, progress=not arguments.quiet)
    writing = (Checkpoints.save, Checkpoints.check, Checkpoints.__exit__)
    with sentences(InverseSetup.from_run, claim_workdir, check_same_data, in_use, restore_newest, *writing):
        trained = train_inverse(request)
    if arguments.json is not None:
        write_json(
            arguments.json,
            {
                "name": experiment.name,
                "folder": str(trained.path),
                "flow_step": experiment.flow_step,
                "steps": trained.step,
                "stopped_by": trained.stopped_by,
                "seconds": trained.seconds,
                "parameters": trained.parameters,
                "flow_parameters": trained.flow_parameters,
                "metrics": dict(trained.metrics),
            },
        )
    if trained.stopped_by:
        return report_stop(trained.stopped_by, trained.step, experiment.train.steps)
    share = 100 * trained.parameters / trained.flow_parameters
    print(f"{trained.path}: step {trained.step}, {trained.parameters:,} parameters ({share:.0f} % of the flow's)")
    if trained.metrics:
        names = ("state_error", "deep_state_error", "clean_error")
        errors = [f"{name.replace('_', ' ')} {trained.metrics[name]:.4g}" for name in names if name in trained.metrics]
        print(f"mean-square errors relative to the variance: {', '.join(errors)}")
    return 0


def _experiment(arguments: argparse.Namespace) -> LearnedInverseExperiment:
    """The training that the folder records, or the default one of the run, with the overrides.

    Raises:
      ValueError: there is no such run or checkpoint, or an override is out of range.
    """
    import dataclasses

    from starflow_jax.core.config import apply_overrides, build
    from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
    from starflow_jax.training.checkpoints.finished_run import newest_step, run_config
    from starflow_jax.training.checkpoints.workdir import read_config
    from starflow_jax.training.inverse.inverse_folder import INVERSE_FOLDER
    from starflow_jax.training.inverse.inverse_setup import default_experiment

    config = run_config(arguments.workdir)
    recorded = read_config(arguments.workdir / INVERSE_FOLDER, LearnedInverseExperiment)
    if recorded is None:
        step = newest_step(arguments.workdir) if arguments.step is None else arguments.step
        recorded = default_experiment(config, step)
    elif arguments.step is not None:
        recorded = dataclasses.replace(recorded, flow_step=arguments.step)
    values = apply_overrides(dataclasses.asdict(recorded), arguments.overrides, LearnedInverseExperiment)
    return build(LearnedInverseExperiment, values)
