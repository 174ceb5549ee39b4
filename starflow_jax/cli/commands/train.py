"""`starflow train`: trains an experiment, or resumes training it."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import INTERRUPTED, CommandError, sentence, sentences
from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.cli.options.devices import add_processes, join
from starflow_jax.cli.options.dry_run import add_dry_run, show
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file, run_path, work_path
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import latents_are_fixed, remark
from starflow_jax.core.choices import ResumePolicy, choices

if TYPE_CHECKING:
    from starflow_jax.core.config import ExperimentConfig
    from starflow_jax.training import TrainRequest, TrainResult

RESUMES = "the same command resumes from the last checkpoint, if there is one"

ORDER = 10
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Trains the experiment of a configuration file, or resumes where an earlier call stopped.

The folder of --workdir receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard),
samples_STEP.png and curves.png. Ctrl-C (exit code 130) and SIGTERM (0) save a checkpoint; the same command then
resumes and reaches exactly the parameters of an unstopped run. Both wait for the running call of the program
(train.steps_per_call updates) and for the files; a second Ctrl-C does not wait. An update whose loss or gradient is
not finite, or too large (train.grad_clip, train.skip_after), is skipped and counted."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow train --config experiments/digits.py --workdir runs/digits
  starflow train --config experiments/digits.py:tiny --workdir runs/tiny --config.train.lr=1e-3
  starflow train --config experiments/digits.py --workdir runs/digits --resume latest-good --max-skipped 50
  starflow train --config experiments/digits.py --workdir runs/digits --profile 110:115 --quiet
  starflow train --config experiments/digits.py --workdir runs/digits --dry-run

starflow info --workdir DIR shows the progress of a run.
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "train", help="train an experiment, or resume training it", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--config",
        required=True,
        type=experiment_file,
        metavar="FILE[:VARIANT]",
        help="Python file with get_config(), which receives the variant after the colon",
    )
    parser.add_argument(
        "--workdir", required=True, type=work_path, metavar="DIR", help="folder of the run: new, empty, or its own"
    )
    parser.add_argument(
        "--resume",
        type=choice(*choices(ResumePolicy)),
        default="latest",
        help="resume from the newest checkpoint, refusing a damaged one (default), or from the newest intact one; "
        "damaged ones are then renamed to STEP.damaged",
    )
    parser.add_argument(
        "--init-from",
        type=run_path,
        metavar="DIR",
        help="initialise a new run with the parameters of another run of the same flow, such as a ported one",
    )
    parser.add_argument(
        "--max-skipped",
        type=integer(0),
        metavar="N",
        help="stop with a checkpoint and exit code 2 after N skipped updates in a row, checked with every row of the "
        "log; 0 for never (default: train.max_skipped of the configuration)",
    )
    parser.add_argument(
        "--grace",
        type=integer(1),
        default=300,
        metavar="SECONDS",
        help="after SIGTERM, exit with code 1 if the run has not stopped within so many seconds (default 300)",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="trace these updates into DIR/profile for xprof; the first call of the program compiles, so begin later",
    )
    parser.add_argument(
        "--metrics-port",
        type=integer(0),
        metavar="PORT",
        help="serve /metrics (Prometheus) and /healthz on this port of process 0",
    )
    parser.add_argument(
        "--profiler-port",
        type=integer(1),
        metavar="PORT",
        help="start JAX's profiler server for xprof on this port of every process; it listens on all addresses, so it "
        "needs --listen 0.0.0.0 or ::",
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS", default="127.0.0.1", help="address of --metrics-port (default 127.0.0.1)"
    )
    parser.add_argument(
        "--hang-after",
        type=real(1),
        metavar="SECONDS",
        help="end a process that has been in one phase of the loop, compilation included, for so long: the stacks of "
        "its threads go to DIR/hangs and the exit code is 75 (default: --hang-factor)",
    )
    parser.add_argument(
        "--hang-factor",
        type=real(0),
        default=30,
        metavar="N",
        help="the same after N times the median time of an update, beyond twice the time between two rows of the log, "
        "and at least 10 minutes, without progress; 0 for never (default 30)",
    )
    parser.add_argument(
        "--supervise",
        type=integer(1),
        metavar="N",
        help="run the training in a process of its own and start it again after a hang or a crash, at most N times "
        "without a new checkpoint",
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="adapt the mesh and the number of microbatches to the devices that are there, such as those of three "
        "hosts where one of four is lost; the batches and their order stay",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="also send the metrics to Weights & Biases")
    parser.add_argument(
        "--recommended-flags",
        action="store_true",
        help="on a TPU, set the compiler flags recommended for its chip (TPU_ACCELERATOR_TYPE), beside those of "
        "LIBTPU_INIT_ARGS; without it they are printed",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the final results as JSON")
    parser.add_argument("--quiet", action="store_true", help="show neither a progress bar nor lines of metrics")
    add_dry_run(parser)
    add_processes(parser)
    parser.set_defaults(run=run, begin=begin)


def begin(arguments: argparse.Namespace) -> None:
    """Joins the other processes, before JAX is used; does nothing when called again."""
    if not arguments.others.is_watched:
        if arguments.recommended_flags:
            _set_recommended_flags()
        join(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import load_config

    if arguments.supervise is not None and not arguments.dry_run:
        from starflow_jax.cli.supervisor import supervise, supervised

        with sentences():
            return supervise(supervised(arguments.argv), arguments.workdir, arguments.supervise)
    with sentences():
        config = load_config(arguments.config, arguments.overrides)
    if arguments.max_skipped is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_skipped=arguments.max_skipped))

    begin(arguments)
    if arguments.elastic:
        config = _adapted(config)

    from starflow_jax.core.figures import write_json

    request = _request(arguments, config)
    if arguments.dry_run:
        return _outlined(request, arguments)
    start = time.perf_counter()
    result = _trained(request)
    if arguments.json is not None and is_first():
        write_json(arguments.json, _figures(request, result) | {"seconds": time.perf_counter() - start})
    return _report(request, result)


def _outlined(request: TrainRequest, arguments: argparse.Namespace) -> int:
    """Shows what the training would do."""
    from starflow_jax.training.run_outline import run_outline

    with sentences(run_outline):
        return show(run_outline(request), arguments)


def _adapted(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with the mesh of --elastic; says what was changed."""
    import jax

    from starflow_jax.sharding.elastic import adapted

    train, devices = config.train, jax.devices()
    sizes = [train.batch_size, *(size for _, _, size in train.curriculum)]
    sizes += [part.batch_size for part in config.data.mixture if part.batch_size]
    # A TPU whose topology has one slice need not name it.
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpu else None
    with sentences(adapted):
        mesh, accumulate = adapted(
            config.mesh, sizes, train.accumulate, len(devices), processes=jax.process_count(), slices=slices
        )
    if is_first():
        named = ", ".join(f"{name}={size}" for name, size in dataclasses.asdict(mesh).items())
        remark(f"--elastic: {len(devices)} devices, mesh {named}, train.accumulate={accumulate}")
    return dataclasses.replace(config, mesh=mesh, train=dataclasses.replace(train, accumulate=accumulate))


def _set_recommended_flags() -> None:
    """Sets the compiler flags recommended for this host's chip; to be called before JAX initialises its devices."""
    from starflow_jax.costs.compiler_flags import VARIABLE, completed, host_chip

    try:
        os.environ[VARIABLE] = completed(host_chip(os.environ), os.environ)
    except ValueError as error:
        raise CommandError(f"--recommended-flags needs the chip before devices are initialised: {error}") from error


def _remark_flags() -> None:
    """Prints the compiler flags that are recommended for the chips of this run and not set."""
    import jax

    from starflow_jax.costs.compiler_flags import missing, sentence
    from starflow_jax.costs.local_chip import chip_name

    chip = chip_name(jax.devices()[0].device_kind)
    if chip is not None and missing(chip, os.environ):
        remark(sentence(chip, os.environ))


def _request(arguments: argparse.Namespace, config: ExperimentConfig) -> TrainRequest:
    """The request that the options describe, with the callbacks of the command."""
    from starflow_jax.evaluation.likelihood.held_out import held_out_score
    from starflow_jax.evaluation.samples.sample_grids import reason_without_samples, write_sample_grid
    from starflow_jax.training import TrainRequest
    from starflow_jax.training.loop.profile import Window
    from starflow_jax.training.loop.weights_and_biases import check_installed
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder

    window = None
    if arguments.profile is not None:
        try:
            window = Window.parse(arguments.profile)
        except ValueError as error:
            raise CommandError(f"--profile {error}") from error
    with sentences(TrainRequest.__post_init__, check_installed):
        request = TrainRequest(
            config=config,
            workdir=arguments.workdir,
            resume=arguments.resume,
            init_from=arguments.init_from,
            progress=not arguments.quiet,
            grace=arguments.grace,
            profile=window,
            wandb=arguments.wandb,
            metrics_port=arguments.metrics_port,
            profiler_port=arguments.profiler_port,
            listen=arguments.listen,
            hang_after=arguments.hang_after,
            hang_factor=arguments.hang_factor,
            host=getattr(arguments, "host_folder", None),
        )
    with sentences(held_out_score, open_with_encoder):
        evaluations = [held_out_score(config)] if config.train.evaluate_every else []
    reason = reason_without_samples(config)
    if reason is not None and request.progress:
        remark(f"no samples while training: {reason}")
    if config.data.without_effect and request.progress:
        remark(latents_are_fixed(config.data.without_effect))
    if request.progress:
        _remark_flags()
    return dataclasses.replace(
        request, callbacks=[] if reason is not None else [write_sample_grid], evaluations=evaluations
    )


def _trained(request: TrainRequest) -> TrainResult:
    """Trains; raises CommandError, with one sentence, for documented failures."""
    from starflow_jax.core.config.flow_checks import check_trainable
    from starflow_jax.data import Loader
    from starflow_jax.data.pipeline.caption_account import CaptionAccount
    from starflow_jax.evaluation.likelihood.held_out import held_out_score
    from starflow_jax.training import Checkpoints, plot_curves, train
    from starflow_jax.training.checkpoints.initial_state import check_source, check_start, first_state
    from starflow_jax.training.checkpoints.resume import restore_newest
    from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use, with_recorded
    from starflow_jax.training.distributed.agreement import on_first_process
    from starflow_jax.training.loop.metrics import MetricsWriter
    from starflow_jax.training.loop.metrics_server import check_port
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder
    from starflow_jax.training.step.frozen_text import open_text
    from starflow_jax.training.step.gradient_transformations import check_lr_factors
    from starflow_jax.training.step.run_layout import run_layout

    for name in ("absl", "asyncio"):
        # Orbax logs the traceback of every thread of a save that failed; the command answers with one sentence.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    opening = (held_out_score, open_with_encoder, open_text, run_layout, CaptionAccount.check_any, with_recorded)
    starting = (check_source, check_start, check_trainable, check_lr_factors, check_port, first_state, claim_workdir)
    reading = (*opening, *starting, on_first_process, in_use, restore_newest, Loader.__next__)
    writing = (Checkpoints.save, Checkpoints.check, Checkpoints.__exit__)
    records = (MetricsWriter.__init__, MetricsWriter.write, plot_curves)
    try:
        with sentences(*reading, *writing, *records):
            return train(request)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(RESUMES) from None
    except OSError as error:
        # Writing any file may fill the disk, for example a grid of samples.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CommandError(f"{sentence(error)}; {RESUMES}") from error


def _figures(request: TrainRequest, result: TrainResult) -> dict[str, Any]:
    """The figures of --json, as plain values."""
    return {
        "name": request.config.name,
        "workdir": str(request.workdir),
        "step": result.step,
        "steps": request.config.train.steps,
        "interrupted": result.interrupted,
        "stopped_by": signal.Signals(result.stopped_by).name if result.stopped_by else None,
        "skipped_updates": result.skips.total,
        "longest_skipped_in_a_row": result.skips.longest,
        "bad_examples": dict(result.bad),
        "images_per_second": result.images_per_second,
        "metrics": dict(result.metrics),
    }


def _report(request: TrainRequest, result: TrainResult) -> int:
    """Prints how the run ended, on the first process; returns the exit code."""
    config, workdir = request.config, request.workdir
    if 0 < config.train.max_skipped <= result.skips.longest:
        raise CommandError(
            f"stopped at step {result.step}: {result.skips.longest} updates in a row were skipped (--max-skipped "
            f"{config.train.max_skipped}); the checkpoint of this step holds the last good parameters"
        )
    preempted = result.stopped_by == signal.SIGTERM
    code = INTERRUPTED if result.interrupted and not preempted else 0
    if not is_first():
        return code
    if result.interrupted:
        print(
            f"starflow: {'stopped by SIGTERM' if preempted else 'interrupted'} at step {result.step} of "
            f"{config.train.steps}; a checkpoint is saved and the same command resumes from it",
            file=sys.stderr,
        )
        return code
    print(_summary(config.name, result.step, result.metrics))
    if result.skips.total:
        print(f"{result.skips.total} updates skipped, {result.skips.longest} at most in a row")
    for name, reason in result.bad.items():
        print(f"skipped {name}: {reason}")
    print(f"run: {workdir}  curves: {workdir / 'curves.png'}")
    return code


def _summary(name: str, step: int, metrics: Mapping[str, float]) -> str:
    if not metrics:
        return f"{name}: trained for {step} steps already"
    bits = f", training bits/dim {metrics['bits_per_dim']:.4f}" if "bits_per_dim" in metrics else ""
    return f"{name}: trained for {step} steps, loss {metrics['loss']:.4f}{bits}"
