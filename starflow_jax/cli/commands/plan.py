"""`starflow plan`: predicts memory and step time of a run on accelerators that are not attached."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.core.choices import ProgramName, choices

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment_config import ExperimentConfig
    from starflow_jax.costs.flops import Work
    from starflow_jax.planning.estimate import Plan

ORDER = 150
OVERRIDABLE = True

DESCRIPTION = """\
Plans an experiment on accelerators that are not there. For TPUs the real training step, and the real Jacobi iteration
of the deep block, are compiled on this machine by the TPU's own compiler (pip install 'starflow-jax[tpu]'); for GPUs
the same arithmetic is done without a compilation.

Says the bytes a device needs and whether they fit, FLOPs a step (causal attention counts the pairs that are seen, once;
training is three forward passes; recomputation does not count), what is moved between devices, and estimates of the
time of a step and of MFU from the chip's published peaks. No estimate is a measurement: docs/plan.md says what each
assumes. A large model takes the compiler minutes."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration, as in starflow train.

topologies: v4:4x4x4, v5e:8x8, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1; a100-80:8, h100:8x4 (GPUs a node x nodes)

examples:
  starflow plan --config experiments/starflow_3b_t2i.py --topology v6e:8x8 --config.mesh.fsdp=8
  starflow plan --config experiments/starflow_v_7b.py --topology v5p:4x4x4 --size 22x40 --search
  starflow plan --config experiments/starflow_3b_t2i.py --topology h100:8x8 --config.mesh.fsdp=64 --json plan.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "plan",
        help="memory, FLOPs and step time on hardware that is not there",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    option = parser.add_argument
    option("--config", required=True, metavar="FILE[:VARIANT]", help="as in starflow train")
    option("--topology", required=True, metavar="CHIP:SHAPE", help="accelerators: see below")
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
    option("--samples", type=integer(1, 10**4), default=1, metavar="N", help="inverse: drawn together (default 1)")
    option(
        "--search", action="store_true", help="find the largest batch that fits, to within 3 %% (several compilations)"
    )
    option("--json", type=Path, metavar="FILE", help="also write the plans as JSON")
    parser.set_defaults(run=run)


def rows_and_columns(text: str) -> tuple[int, int]:
    """Parses rows and columns such as `22x40`."""
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be ROWSxCOLUMNS, as in 22x40, got {text!r}")
    rows, columns = text.split("x")
    return int(rows), int(columns)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code, 0 if everything fits or only a figure was requested."""
    # Set before JAX initializes its devices, because nothing runs on them.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    from starflow_jax.core.config import load_config
    from starflow_jax.costs.chips import topology

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
        place = topology(arguments.topology)
    works = works_of(config, arguments)

    from starflow_jax.core.figures import write_json
    from starflow_jax.planning.ahead_of_time import tpu_layout
    from starflow_jax.planning.estimate import as_values, check_sizes, make_plan
    from starflow_jax.planning.plan_report import report
    from starflow_jax.sharding.mesh import check_fit
    from starflow_jax.training.step.frozen_autoencoder import load_encoder
    from starflow_jax.training.step.frozen_text import load_text

    wanted: list[tuple[ProgramName, Any]] = []
    if arguments.program != "inverse":
        wanted += [("train", work) for work in works]
    if arguments.program != "train":
        wanted.append(("inverse", _resized(works[0], arguments.samples)))
    plans = []
    for program, work in wanted:
        with sentences(load_encoder, load_text, tpu_layout, check_fit, check_sizes, type(config.mesh).sizes):
            plan = make_plan(config, place, work, program)
        plans.append(plan)
        print(report(plan), end="\n\n", flush=True)
    values: dict[str, Any] = {"plans": [as_values(plan) for plan in plans]}
    if arguments.search:
        values["largest"] = _searched(config, arguments, works[0])
    if arguments.json is not None:
        write_json(arguments.json, values)
        print(f"figures: {arguments.json}")
    return 0


def works_of(config: ExperimentConfig, arguments: argparse.Namespace) -> list[Work]:
    """Data sizes of every source, longest clips first; raises CommandError if the flow does not accept them."""
    from starflow_jax.costs.flops import Work

    flow = config.flow
    height, width = arguments.size or flow.image_shape
    if height % flow.patch_size or width % flow.patch_size:
        raise CommandError(f"--size must be multiples of flow.patch_size={flow.patch_size}, got {height}x{width}")
    if not flow.rope and (height, width) != flow.image_shape:
        raise CommandError(f"--size must be {flow.image_shape[0]}x{flow.image_shape[1]} for learned positions")
    text = flow.text_length if arguments.text is None else arguments.text
    if text and not flow.text_dim:
        raise CommandError(f"--text must be 0 for a flow that reads no text, got {text}")
    if flow.text_dim and not text:
        raise CommandError("--text must be at least 1 for a flow that reads text, got 0")
    parts = {(part.frames, part.batch_size or config.train.batch_size) for part in config.data.mixture}
    parts = parts or {(config.data.frames, config.train.batch_size)}
    if arguments.frames is not None:
        # For a mixture, select the part with this number of frames.
        parts = {part for part in parts if part[0] == arguments.frames} or {(arguments.frames, config.train.batch_size)}
    longest = max(frames for frames, _ in parts)
    if longest and flow.axes == 2:
        raise CommandError(f"--frames must be 0 for a flow of still images, got {longest}")
    rows, columns = height // flow.patch_size, width // flow.patch_size
    return [Work(batch, frames or None, rows, columns, text) for frames, batch in sorted(parts, reverse=True)]


def _resized(work: Work, batch: int) -> Work:
    import dataclasses

    return dataclasses.replace(work, batch=batch)


def _searched(config: ExperimentConfig, arguments: argparse.Namespace, work: Work) -> dict[str, Any]:
    """Finds the largest batch of the first requested program, prints it, and returns it for JSON."""
    import dataclasses

    from starflow_jax.costs.chips import topology
    from starflow_jax.planning import budget
    from starflow_jax.planning.estimate import as_values, largest_batch, make_plan
    from starflow_jax.planning.plan_report import short_report

    place, training = topology(arguments.topology), arguments.program != "inverse"
    sizes = dict(zip(("data", "fsdp", "tensor", "sequence"), config.mesh.sizes(place.devices), strict=True))
    step = sizes["data"] * sizes["fsdp"] * config.train.accumulate if training else 1

    def plan_of(batch: int) -> Plan:
        sized = _resized(work, batch)
        train = dataclasses.replace(config.train, batch_size=batch, curriculum=())
        plan = make_plan(
            dataclasses.replace(config, train=train) if training else config,
            place,
            sized,
            "train" if training else "inverse",
        )
        print(short_report(plan), flush=True)
        return plan

    def predicted(batch: int) -> bool:
        model = budget.train_memory if training else budget.inverse_memory
        return model(config, place, sizes, _resized(work, batch)).fits

    guess = step
    while guess < 2**16 and predicted(2 * guess):
        guess *= 2
    print("largest batch:")
    plan, tried = largest_batch(plan_of, step, guess)
    found = f"{plan.batch}, a multiple of {step}" if plan else f"none: not even {step} fit"
    print(f"largest batch that fits, to within 3 %: {found}")
    return {"batch": plan.batch if plan else None, "tried": tried, "plan": as_values(plan) if plan else None}
