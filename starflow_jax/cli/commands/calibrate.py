"""`starflow calibrate`: measures on the training data of a run how each block is best inverted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.stored import output_file, work_path
from starflow_jax.core.choices import Objective

if TYPE_CHECKING:
    from starflow_jax.solvers.automatic.calibration import Calibration

ORDER = 100
COMPILES = True

DESCRIPTION = """\
Measures how each block of a trained run is best inverted, on a few of its training images or clips, and writes
calibration.json into the run's folder, which --solver auto reads.

CRM and IGM are the two measures of GS-Jacobi: how slowly the iteration of a block converges, and how close each initial
estimate is to the solution. Solvers are then compared with the exact solution, which the forward pass gives: depth is
the number of sequential network evaluations, and the error is the relative error of the worst sample. Where the run
has a learned inverse (starflow train-inverse), iterations that start from its estimates are compared, too. Times are
valid for this machine: calibrate again on another one, after more training, or for another guidance weight."""

EXAMPLES = """\
examples:
  starflow calibrate --workdir runs/digits
  starflow calibrate --workdir runs/video --guidance 2 --target-error 1e-3
  starflow sample --workdir runs/video --caption "a seven moving left" --solver auto --out seven.mp4
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "calibrate", help="measure how a run is best inverted", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", required=True, type=work_path, metavar="DIR", help="folder of a trained run")
    option("--samples", type=integer(1, 4096), default=4, metavar="N", help="training images or clips (default 4)")
    option(
        "--target-error",
        type=real(above=True),
        default=1e-3,
        metavar="X",
        help="relative error of the final sample to aim at, at least 1e-6 (default 1e-3)",
    )
    option("--guidance", type=real(), metavar="W", help="weight of guidance, 0 for none (default: the configuration's)")
    option(
        "--batch",
        type=integer(1, 10**6),
        action="append",
        metavar="N",
        help="show the choice of auto for batches of N samples (repeatable; default 1, 4 and 16)",
    )
    option(
        "--seed",
        type=integer(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="seed of the noise that is added to the data (default 0)",
    )
    option("--no-ema", action="store_true", help="calibrate the last parameters, not their exponential moving average")
    option("--json", type=output_file, metavar="FILE", help="also write the calibration there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from tqdm import tqdm

    from starflow_jax.core.atomic_writing import write_text
    from starflow_jax.training import load_run
    from starflow_jax.training.calibrate_request import CalibrateRequest
    from starflow_jax.training.inverse.inverse_folder import has_inverse, load_inverse
    from starflow_jax.training.run_calibration import CALIBRATION_FILE, calibrate_run, write_calibration
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder
    from starflow_jax.training.step.frozen_text import load_text

    request = build_request(CalibrateRequest, arguments)
    with sentences(load_run, load_inverse, open_with_encoder, load_text):
        config, _, params, step = load_run(arguments.workdir, ema=not arguments.no_ema)
        inverse = load_inverse(arguments.workdir, config) if has_inverse(arguments.workdir) else None
        open_with_encoder(config, "train")
        load_text(config)
    if request.guidance and not (config.flow.text_dim or config.flow.num_classes):
        raise CommandError(f"--guidance must be 0 for a model that reads no condition, got {request.guidance:g}")
    check_writable("the calibration", arguments.workdir / CALIBRATION_FILE)
    count = sum(bool(block.layers) for block in config.flow.blocks)
    with tqdm(total=count, unit="block", disable=None, dynamic_ncols=True) as bar:

        def progress(description: str) -> None:
            bar.set_description(description)
            bar.update()

        calibration = calibrate_run(config, params, request, step=step, inverse=inverse, progress=progress)
    path = write_calibration(arguments.workdir, calibration)
    print(blocks_table(calibration), trials_table(calibration), sep="\n\n", end="\n\n")
    for batch in arguments.batch or (1, 4, 16):
        print(choices_table(calibration, batch), end="\n\n")
    print(
        f"{calibration.samples} samples of the training data, step {step}, guidance {calibration.guidance:g}; times of "
        f"{calibration.device} during this measurement"
    )
    print(f"written: {path}")
    if arguments.json is not None:
        write_text(arguments.json, calibration.to_json())
        print(f"JSON: {arguments.json}")
    return 0


def blocks_table(calibration: Calibration) -> str:
    """A table of the measures of every block, in the order of inversion."""
    from starflow_jax.core.figures import text_table

    rows = [["block", "tokens", "CRM", "IGM noise", "IGM zero", "IGM affine", "error grows by"]]
    for block in reversed(calibration.blocks):
        igm = {measure.start: measure.igm for measure in block.starts}
        rows.append(
            [
                str(block.block),
                str(block.tokens),
                f"{block.crm:.3g}",
                *(f"{igm[name]:.3g}" if name in igm else "-" for name in ("noise", "zero", "affine")),
                f"{block.amplification:.2f}",
            ]
        )
    return text_table(rows)


def trials_table(calibration: Calibration) -> str:
    """A table of the solvers that were tried on every block."""
    from starflow_jax.core.figures import text_table

    rows = [["block", "solver", "tolerance", "depth", "relative error", "seconds"]]
    for block in reversed(calibration.blocks):
        for trial in block.trials:
            numbers = [f"{trial.tolerance:.1e}", str(trial.depth), f"{trial.error:.1e}", f"{trial.seconds:.4f}"]
            rows.append([str(block.block), trial.method.label, *numbers])
    return text_table(rows)


def choices_table(calibration: Calibration, batch: int) -> str:
    """A table of the choices of `auto` for one batch size and every objective."""
    from starflow_jax.core.figures import text_table
    from starflow_jax.solvers.automatic.block_solver_choice import choices

    rows = [[f"auto, batch {batch}", "block", "solver", "depth", "predicted s", "sequential s"]]
    for objective in get_args(Objective):
        chosen = choices(calibration, batch=batch, objective=objective)
        for choice in reversed(chosen):
            seconds = [f"{choice.seconds:.4f}", f"{choice.sequential_seconds:.4f}"]
            rows.append([objective, str(choice.block), choice.trial.method.label, str(choice.trial.depth), *seconds])
        total = [f"{sum(c.seconds for c in chosen):.4f}", f"{sum(c.sequential_seconds for c in chosen):.4f}"]
        rows.append([objective, "all", "", str(sum(c.trial.depth for c in chosen)), *total])
    return text_table(rows)
