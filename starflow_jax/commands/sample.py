"""`starflow sample`: pictures drawn from a trained run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.commands.arguments import choice, class_choice, integer, real
from starflow_jax.commands.errors import CommandError, sentences
from starflow_jax.commands.outputs import check_new_folder, check_writable

if TYPE_CHECKING:
    from starflow_jax.sampling import Samples

DESCRIPTION = """\
Draws pictures from a trained run: noise, through the inverse of the flow, to pixels.

The sequential solver is exact: one network evaluation a token. Jacobi iterates whole chunks of tokens until
they stop moving, usually far fewer evaluations; a chunk that did not settle is reported."""

EXAMPLES = """\
examples:
  starflow sample --workdir runs/digits --num 64 --out digits.png
  starflow sample --workdir runs/digits --num 64 --class 7 --guidance 1.5 --solver jacobi --out sevens.png
  starflow sample --workdir runs/digits --num 1000 --out digits.npz
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser("sample", help="draw pictures from a run", description=DESCRIPTION, epilog=EXAMPLES)
    option = parser.add_argument
    option("--workdir", required=True, type=Path, metavar="DIR", help="folder of a trained run")
    option(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="x.png: one grid; x.npz: arrays image, label, x; a name without a suffix: a new folder of PNGs",
    )
    option("--num", type=integer(1, 10**9), metavar="N", help="pictures (default: the configuration's)")
    option(
        "--class",
        dest="label",
        type=class_choice,
        metavar="N|all|none",
        help="a class, all classes in turn (default), or none",
    )
    option(
        "--guidance",
        type=real(),
        metavar="W",
        help="weight of classifier-free guidance, 0 for none (default: the configuration's)",
    )
    option("--solver", type=choice("sequential", "jacobi"), metavar="NAME", help="sequential or jacobi")
    option("--block", type=integer(1), metavar="N", help="jacobi: tokens of a chunk (default 64)")
    option(
        "--tolerance",
        type=real(),
        metavar="X",
        help="jacobi: stop at this relative mean-square change (default 1e-3, a relative error near 0.1)",
    )
    option(
        "--max-iterations",
        type=integer(1, 100_000),
        metavar="N",
        help="jacobi: most iterations of a chunk (default 32)",
    )
    option("--temperature", type=real(), metavar="X", help="factor of the noise (default: the configuration's)")
    option(
        "--attention-temperature",
        type=real(above=True),
        default=1.0,
        metavar="X",
        help="divides attention logits; in TARFlow those of the unconditional half of guidance (default 1)",
    )
    option(
        "--denoise",
        type=choice("none", "score", "learned"),
        metavar="NAME",
        help="remove the training noise: none, score or learned (default: the configuration's)",
    )
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    option("--batch", type=integer(1), default=64, metavar="N", help="pictures at a time (default 64)")
    option(
        "--scale",
        type=integer(1, 64),
        metavar="N",
        help="enlarge every pixel of a PNG (default: up to about 64 pixels a picture)",
    )
    option("--no-ema", action="store_true", help="use the last parameters, not their running mean")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    out = arguments.out
    if out.suffix in (".png", ".npz"):
        check_writable("--out", out)
    elif out.suffix:
        raise CommandError(f"--out must end in .png or .npz, or be a folder without a suffix, got {str(out)!r}")
    else:
        check_new_folder("--out", out)
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import jax
    import numpy as np

    from starflow_jax.figures import write_json
    from starflow_jax.sampling import check_request, class_labels, sample
    from starflow_jax.training import load_run

    with sentences(load_run):
        config, _, params, step = load_run(arguments.workdir, ema=not arguments.no_ema)
    count = arguments.num or config.sample.num
    label = "all" if arguments.label is None else arguments.label
    if label == "all":
        labels = class_labels(config, count)
    else:
        labels = np.full(count, -1 if label == "none" else label, np.int32)
    guidance = arguments.guidance
    if guidance is None:  # what the configuration says is meant for pictures of a class
        guidance = config.sample.guidance if (labels >= 0).any() else 0.0
    solver = _solver(arguments, arguments.solver or config.sample.solver)
    with sentences(check_request):
        drawn = sample(
            params,
            config,
            jax.random.key(arguments.seed),
            labels,
            solver=solver,
            guidance=guidance,
            temperature=arguments.temperature,
            attention_temperature=arguments.attention_temperature,
            denoise=arguments.denoise,
            batch_size=arguments.batch,
        )
    _write(out, drawn, arguments.scale, config.flow.num_classes if label == "all" else 0)

    report = drawn.report
    print(
        f"{report.images} pictures in {report.seconds:.2f} s, after {report.compile_seconds:.1f} s to compile; "
        f"{report.evaluations} network evaluations in {report.batches} batches of {report.batch_size}"
    )
    _warn(drawn, guidance, config.flow.num_classes or config.flow.text_dim, config.data.label_drop)
    print(f"written: {out}")
    if arguments.json is not None:
        figures = {
            "workdir": str(arguments.workdir),
            "out": str(out),
            "step": step,
            "seed": arguments.seed,
            "class": label,
            "solver": {"name": type(solver).__name__.lower(), **dataclasses.asdict(solver)},
            "guidance": guidance,
            "converged": report.converged,
            **dataclasses.asdict(report),
        }
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def _solver(arguments: argparse.Namespace, name: str) -> Any:
    from starflow_jax.solvers import Jacobi, Sequential

    given = {
        "block": arguments.block,
        "tolerance": arguments.tolerance,
        "max_iterations": arguments.max_iterations,
    }
    given = {option: value for option, value in given.items() if value is not None}
    if name == "jacobi":
        return Jacobi(**given)
    if given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise CommandError(f"{option} belongs to --solver jacobi, got --solver {name}")
    return Sequential()


def _warn(drawn: Samples, guidance: float, classes: int, label_drop: float) -> None:
    """Says what may be wrong with the pictures."""
    report = drawn.report
    if not report.converged:
        worst = max(report.unconverged, key=lambda chunk: chunk.residual)
        print(
            f"starflow: warning: {len(report.unconverged)} chunks did not converge (worst: relative change "
            f"{worst.residual:.2g} in block {worst.block} after {worst.iterations} iterations); "
            "raise --max-iterations or use --solver sequential",
            file=sys.stderr,
        )
    if report.non_finite:
        print(
            f"starflow: warning: {report.non_finite} of {report.images} pictures hold values that are not "
            "finite, shown as black or white",
            file=sys.stderr,
        )
    if classes and not label_drop and (guidance > 0 or (drawn.labels < 0).any()):
        print(
            "starflow: warning: the model was trained with label_drop 0, so what it does without a class (of which "
            "guidance is made, too) is untrained",
            file=sys.stderr,
        )


def _write(out: Path, drawn: Samples, scale: int | None, classes: int) -> None:
    import numpy as np

    from starflow_jax.evaluation.pictures import class_columns, enlargement
    from starflow_jax.media import image_grid, write_png
    from starflow_jax.training.files import replacing

    images = drawn.images
    scale = enlargement(*images.shape[1:3]) if scale is None else scale
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_png(out, image_grid(images, class_columns(classes, len(images))), scale=scale)
    elif out.suffix == ".npz":
        with replacing(out) as temporary:
            np.savez_compressed(temporary, image=images, label=drawn.labels, x=drawn.x)
    else:
        temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
        digits = len(str(len(images) - 1))
        try:
            for number, image in enumerate(images):
                write_png(temporary / f"{number:0{digits}d}.png", image, scale=scale)
            os.replace(temporary, out)  # also onto an empty folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
