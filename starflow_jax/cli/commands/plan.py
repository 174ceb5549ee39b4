"""`starflow plan`: predicts memory and step time of a run on accelerators that are not attached."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.quantise import add_quantise
from starflow_jax.cli.options.stored import output_file
from starflow_jax.core.choices import ProgramName, choices
from starflow_jax.costs.chips import topology
from starflow_jax.costs.compiler_flags import completed, missing, sentence, variable

if TYPE_CHECKING:
    from starflow_jax.planning.plan_request import PlanRequest

ORDER = 150
OVERRIDABLE = True

DESCRIPTION = """\
Plans an experiment on accelerators that are not attached. For TPUs the real training step, and the real Jacobi
iteration of the deep block, are compiled on this machine by the TPU's own compiler (pip install 'starflow-jax[tpu]');
for GPUs by XLA (pip install 'starflow-jax[gpu-compiler]'), or the figures are computed by formulas where that is not
installed.

Reports the bytes that a device needs and whether they fit, FLOPs of a step (causal attention counts only visible pairs;
training is three forward passes; recomputation does not count), the data moved between devices, and estimates of step
time and MFU from the chip's published peaks. No estimate is a measurement: docs/plan.md states what each assumes.
Compiling a large model takes minutes. Flags of LIBTPU_INIT_ARGS (TPUs) and XLA_FLAGS (GPUs) apply; the last line says
which are recommended."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration, as in starflow train.

topologies: v4:4x4x4, v5e:8x8, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1; a100-80:8, h100:8x4 (GPUs a node x nodes), rtx4080:1
(16 GiB), rtx4090:1 (24 GiB)

examples:
  starflow plan --config experiments/starflow_3b_t2i.py --topology v6e:8x8 --config.mesh.fsdp=8
  starflow plan --config experiments/starflow_v_7b.py --topology v5p:4x4x4 --size 22x40 --search
  starflow plan --config experiments/starflow_3b_t2i.py --topology h100:8x8 --config.mesh.fsdp=64 --json plan.json
  starflow plan --config experiments/starflow_3b_t2i.py --topology rtx4080:1 --program inverse --quantise int8
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "plan",
        help="memory, FLOPs and step time on accelerators that are not attached",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    option = parser.add_argument
    option("--config", required=True, type=experiment_file, metavar="FILE[:VARIANT]", help="as in starflow train")
    option("--topology", required=True, type=chips_and_shape, metavar="CHIP:SHAPE", help="accelerators: see below")
    option(
        "--program",
        type=choice(*choices(ProgramName), "all"),
        default="train",
        metavar="NAME",
        help="train, inverse (one guided Jacobi iteration of the deep block) or all (default train)",
    )
    option(
        "--frames",
        type=integer(0, 10**5),
        metavar="N",
        help="frames of a video, 0 for images (default: those of the data, each source of a mixture in turn)",
    )
    option("--size", type=rows_and_columns, metavar="HxW", help="rows x columns (default: flow.image_size)")
    option("--text", type=integer(0, 10**5), metavar="N", help="text tokens (default: flow.text_length)")
    option("--samples", type=integer(1, 10**4), default=1, metavar="N", help="inverse: samples in a batch (default 1)")
    option(
        "--iterations",
        type=integer(1, 10**4),
        metavar="N",
        help="inverse: iterations of a chunk, for the time of a sample (default 10)",
    )
    option(
        "--chunk",
        type=integer(1, 10**5),
        metavar="N",
        help="inverse: tokens of a chunk, which are solved together, in every frame (default 64, and 512 after the "
        "first frame); fewer need less memory; starflow sample names the length in the first frame --block",
    )
    add_quantise(parser, "inverse: with weights of the layers stored in fewer bits")
    option(
        "--search", action="store_true", help="find the largest batch that fits, to within 3 %% (several compilations)"
    )
    option(
        "--recommended-flags",
        action="store_true",
        help="compile with the compiler flags recommended for the chip, beside those of LIBTPU_INIT_ARGS (for GPUs "
        "XLA_FLAGS)",
    )
    option("--json", type=output_file, metavar="FILE", help="also write the plans as JSON")
    parser.set_defaults(run=run)


def chips_and_shape(text: str) -> str:
    """Parses CHIP:SHAPE such as `v5e:8x8`; returns the text."""
    try:
        topology(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("topology ")) from None
    return text


def rows_and_columns(text: str) -> tuple[int, int]:
    """Parses rows and columns such as `22x40`."""
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNS, as in 22x40, got {text!r}")
    rows, columns = text.split("x")
    return int(rows), int(columns)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns exit code 0, whether or not the plans fit."""
    # Set before JAX initializes its devices, because nothing runs on them.
    os.environ["JAX_PLATFORMS"] = "cpu"

    from starflow_jax.core.config import load_config
    from starflow_jax.core.figures import write_json
    from starflow_jax.planning.ahead_of_time import tpu_layout
    from starflow_jax.planning.estimate import as_values, check_sizes
    from starflow_jax.planning.gpu_compiler import gpu_layout
    from starflow_jax.planning.plan_report import report
    from starflow_jax.planning.plan_request import PlanRequest, plans
    from starflow_jax.sharding.mesh import check_fit
    from starflow_jax.training.step.frozen_autoencoder import load_encoder
    from starflow_jax.training.step.frozen_text import load_text

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
        request = build_request(PlanRequest, arguments, config=config)
    chip = topology(arguments.topology).chip
    flags = sentence(chip.name, os.environ)
    if arguments.recommended_flags and missing(chip.name, os.environ):
        os.environ[variable(chip.name)] = completed(chip.name, os.environ)
        flags = sentence(chip.name, os.environ)
    figures: dict[str, Any] = {"plans": []}
    compilers = (tpu_layout, gpu_layout)
    with sentences(load_encoder, load_text, *compilers, check_fit, check_sizes, type(config.mesh).sizes):
        for plan in plans(request):
            print(report(plan, request.iterations), end="\n\n", flush=True)
            figures["plans"].append(as_values(plan))
    print(flags)
    if arguments.search:
        figures["largest"] = _search(request)
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"JSON: {arguments.json}")
    return 0


def _search(request: PlanRequest) -> dict[str, Any]:
    """Finds the largest batch that fits, prints it, and returns it for JSON."""
    from starflow_jax.planning.plan_report import short_report
    from starflow_jax.planning.plan_request import search_largest_batch

    print("largest batch:")
    largest = search_largest_batch(request, lambda plan: print(short_report(plan), flush=True))
    plan, step = largest.plan, largest.step
    result = f"{plan.batch}, a multiple of {step}" if plan else f"none: not even {step} fit"
    print(f"largest batch that fits, to within 3 %: {result}")
    return largest.figures()
