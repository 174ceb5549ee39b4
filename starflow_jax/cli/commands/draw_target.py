"""`starflow draw-target`: samples of a trained run with weights for a density in a file of the user's own."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import LARGEST_INT32, integer, real, shortened
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.devices import add_mesh, layout_of_command
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.paths import path
from starflow_jax.cli.options.stored import output_file
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model

ORDER = 74
COMPILES = True

DESCRIPTION = """\
Draws samples of a trained run and weights them by a density p~ that a Python file defines, up to a constant.

The function reads samples [n, ...] as the flow models them (vectors in the units of their file) and returns [n]
log-densities in nats, with jax.numpy. The file is executed. The weights p~ / q are exact: weighted means are those
under p~, and the mean weight estimates its integral Z. The effective sample size says how far the run and p~ differ."""

EXAMPLES = """\
examples:
  starflow draw-target --workdir runs/table --target energies.py:log_density --out points.npz --json weights.json
  starflow draw-target --workdir runs/table --target energies.py:log_density --resample 1000 --out points.npz
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "draw-target", help="weight samples of a run for a given density", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    add_trained_model(parser)
    add_checkpoint(parser)
    option("--target", required=True, type=target_name, metavar="FILE.py:FUNCTION", help="the log-density")
    option("--out", required=True, type=output_file, metavar="FILE.npz", help="x, log_weight and log_q")
    option("--num", type=integer(1), metavar="N", help="number of samples (default 10000)")
    option("--batch", dest="batch_size", type=integer(1), metavar="N", help="samples computed at a time (default 1000)")
    option("--class", dest="label", type=integer(0), metavar="N", help="runs with classes: that of all samples")
    option(
        "--clip",
        type=real(),
        metavar="SHARE",
        help="lower this share of the largest weights of what is written; the figures are those without it (default 0)",
    )
    option(
        "--resample", type=integer(1), metavar="N", help="write N points of equal weight in place of weighted samples"
    )
    option("--seed", type=integer(0, LARGEST_INT32), metavar="N", help="of all noise (default 0)")
    add_mesh(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def target_name(text: str) -> str:
    """Parses FILE.py:FUNCTION; returns the text."""
    source, _, function = text.rpartition(":")
    if not source.endswith(".py") or not re.fullmatch(r"\w{1,200}", function):
        raise argparse.ArgumentTypeError(f"must be FILE.py:FUNCTION, got {shortened(text)!r}")
    path(source)
    return text


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.sampling.sample_requests import RunRequest

    model_request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    if arguments.out.suffix != ".npz":
        raise CommandError(f"--out must end in .npz, got {str(arguments.out)!r}")
    for name in ("out", "json"):
        if getattr(arguments, name) is not None:
            check_writable(f"--{name}", getattr(arguments, name))

    import numpy as np

    from starflow_jax.core.atomic_writing import replacing
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.loaded_run import open_run
    from starflow_jax.targets.draw_request import DrawRequest, draw_for_target, open_target

    request = build_request(DrawRequest, arguments)
    begun = time.perf_counter()
    layout = layout_of_command(arguments)
    with sentences(open_run, open_target, draw_for_target):
        target = open_target(request.target)
        model = open_run(model_request, layout=layout)
        arrays, figures = draw_for_target(model, target, request)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary:
        np.savez_compressed(temporary, **arrays)
    figures["seconds"] = time.perf_counter() - begun
    share = figures["effective_sample_size"] / figures["num"]
    print(
        f"{figures['num']} samples, effective sample size {figures['effective_sample_size']:.0f} ({share:.1%}), "
        f"largest weight {figures['largest_weight']:.2%}"
    )
    bootstrap = figures["log_z_bootstrap_error"]
    print(f"log Z = {figures['log_z']:.4f} ± {figures['log_z_error']:.4f} (by the bootstrap {bootstrap:.4f})")
    print(f"written: {arguments.out}")
    if arguments.json is not None:
        named = {"workdir": str(model.workdir), "step": model.step, "target": request.target, "seed": request.seed}
        write_json(arguments.json, named | {"out": str(arguments.out), "written": len(arrays["x"])} | figures)
        print(f"JSON: {arguments.json}")
    return 0
