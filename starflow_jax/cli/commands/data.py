"""`starflow data`: shows the data of an experiment and measures how fast it is read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file, output_path, run_path
from starflow_jax.cli.remarks import latents_are_fixed
from starflow_jax.core.choices import Split, choices

if TYPE_CHECKING:
    from starflow_jax.training.data_summary import DataRequest, DataSummary

ORDER = 110
OVERRIDABLE = True

DESCRIPTION = """\
Shows the data of an experiment as the model reads them: sources, buckets, counts, shapes and shares of the batches; a
contact sheet with captions; how many examples have a caption, by kind of file; the names and numbers of the classes;
what is left aside; the number of examples per second that the pipeline reads; and, for a trained run (--workdir),
whether this is as fast as its training step. Files that cannot be read are counted and named."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow data --config experiments/moving_digits.py --out sheet.png
  starflow data --config photos.py --config.data.threads=2 --workdir runs/photos --json data.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "data", help="show the data of an experiment", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--config", required=True, type=experiment_file, metavar="FILE[:VARIANT]", help="Python file with get_config()"
    )
    parser.add_argument("--split", type=choice(*choices(Split)), default="train", help="train (default) or test")
    parser.add_argument("--out", type=output_path, metavar="PNG", help="write a contact sheet")
    parser.add_argument(
        "--seconds",
        type=real(),
        default=5.0,
        metavar="S",
        help="duration of the measurement, at most 3600 (default: 5; 0 for none)",
    )
    parser.add_argument(
        "--workdir", type=run_path, metavar="DIR", help="a run, to compare with the speed of its training step"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import load_config

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
    if arguments.out is not None:
        check_writable("--out", arguments.out)
        if arguments.out.suffix.lower() != ".png":
            raise CommandError(f"--out must end in .png, got {arguments.out}")

    from starflow_jax.core.figures import write_json
    from starflow_jax.data.pipeline.batches import train_loader
    from starflow_jax.data.pipeline.loader import Loader
    from starflow_jax.data.pipeline.overview import overview
    from starflow_jax.media.contact_sheet import write_contact_sheet
    from starflow_jax.training.data_summary import DataRequest, summarise_data
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder

    request = build_request(DataRequest, arguments, config=config)
    with sentences(open_with_encoder, train_loader, overview, Loader.__next__):
        summary = summarise_data(request)
    _print_data(request, summary)
    if arguments.out is not None:
        write_contact_sheet(arguments.out, summary.sheet_rows())
        print(f"contact sheet: {arguments.out}")
    for name, reason in summary.skipped.items():
        print(f"skipped {name}: {reason}")
    _print_speed(request, summary)
    if arguments.json is not None:
        write_json(arguments.json, summary.figures())
    return 0


def _print_data(request: DataRequest, summary: DataSummary) -> None:
    """Prints a table of the parts and remarks about them."""
    from starflow_jax.core.figures import text_table

    print(text_table(summary.overview.rows()))
    print("\n".join([*summary.overview.notes(), *summary.account()]))
    data = request.config.data
    if data.without_effect:
        print(latents_are_fixed(data.without_effect))
    if summary.latents:
        shapes = ", ".join("x".join(map(str, shape)) for shape in summary.latents)
        print(f"the training step encodes them with {data.autoencoder} to latents of {shapes}")


def _print_speed(request: DataRequest, summary: DataSummary) -> None:
    """Prints the speed of the pipeline, and whether it keeps up with the training step of a run."""
    data, rate, needed = request.config.data, summary.rate, summary.needed
    if summary.without_run is not None:
        print(f"no comparison with the training step of a run: {summary.without_run}")
    if rate is None:
        return
    readers = f"{data.workers} processes" if data.workers else f"{data.threads} threads"
    how = f"{readers} reading ahead" if data.workers or data.threads else "nothing reading ahead"
    print(f"the pipeline alone reads {rate:.1f} examples a second, {how}")
    if needed is not None:
        verdict = "keeps up" if rate >= needed else "does not keep up"
        print(
            f"it {verdict} with the run in {request.workdir}, which trains on {needed:.1f} a second: "
            f"{rate / needed:.2f} times as many"
        )
