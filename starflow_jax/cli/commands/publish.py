"""`starflow publish`: a trained model as a folder for everybody, and on the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, real, shortened
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.dry_run import add_dry_run, show
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.paths import path
from starflow_jax.cli.options.stored import output_file
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model
from starflow_jax.core.storage.hub_addresses import HubAddress

ORDER = 165

DESCRIPTION = """\
Writes a trained model for others: the parameters as safetensors under the names of the PyTorch originals, the
experiment, the frozen models and a model card, and uploads them to the Hugging Face Hub in one commit.

A published model is used by its address hf://ORG/NAME wherever a command reads a model. The upload needs the extra hub
and a login (hf auth login, or HF_TOKEN). With --out alone, nothing leaves the machine."""

EXAMPLES = """\
examples:
  starflow publish --workdir runs/digits --license mit --out published
  starflow publish --workdir runs/digits --license mit --to hf://ORG/digits-flow --private
  starflow publish --model models/mine --license other --notes limits.md --to hf://ORG/NAME --message "Second version"
  starflow sample --model hf://ORG/digits-flow --num 16 --out digits.png
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "publish", help="a model for others, on the Hugging Face Hub", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_trained_model(parser)
    option = parser.add_argument
    option("--to", type=repository, metavar="hf://ORG/NAME", help="the repository, made if there is none")
    option("--out", type=path, metavar="DIR", help="a new folder for the files; without --to nothing is uploaded")
    option("--license", required=True, metavar="ID", help="identifier of the licence, such as apache-2.0, mit or other")
    option("--notes", type=path, metavar="FILE.md", help="text on the limits of the model, for its card")
    option(
        "--form",
        type=choice("safetensors", "run"),
        help="safetensors (default), or run: the files as they are, of any flow, with calibration and learned inverse",
    )
    option("--flow-only", action="store_true", help="leave out the frozen models, whose licences may be others")
    option("--shard-size", type=real(above=True), metavar="GB", help="gigabytes of a file at most (default 5)")
    add_checkpoint(parser)
    option("--private", action="store_true", help="make a new repository private; a public one is refused")
    option("--revision", metavar="NAME", help="the branch that is written, made if there is none (default: main)")
    option("--message", metavar="TEXT", help="message of the commit")
    add_dry_run(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the result as JSON")
    parser.set_defaults(run=run)


def repository(text: str) -> HubAddress:
    """Parses hf://ORG/NAME, which names all of a repository."""
    try:
        address = HubAddress.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if address.revision is not None or address.file:
        raise argparse.ArgumentTypeError(
            f"must be hf://ORG/NAME without a revision and a file, got {shortened(text)!r}"
        )
    return address


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.amounts import size_text
    from starflow_jax.hub.publishing import PublishRequest, publication_outline, publish

    request = build_request(PublishRequest, arguments, ema=not arguments.no_ema, notes=_notes(arguments.notes))
    if request.out is not None:
        check_new_folder("--out", request.out)

    import logging

    import jax

    jax.config.update("jax_platforms", "cpu")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with sentences():
        if arguments.dry_run:
            return show(publication_outline(request), arguments)
        published = publish(request, _results(request.workdir or request.model))
    total = sum(published.files.values())
    where = " and ".join(str(place) for place in (published.out, published.address) if place is not None)
    if arguments.json is not None:
        from starflow_jax.core.figures import write_json

        figures = {
            "name": published.name,
            "step": published.step,
            "files": dict(published.files),
            "out": None if published.out is None else str(published.out),
            "address": None if published.address is None else str(published.address),
        }
        write_json(arguments.json, figures)
    print(f"{published.name}: step {published.step}, {len(published.files)} files, {size_text(total)}: {where}")
    return 0


def _notes(file: Path | None) -> str:
    """The text of a file; "" without one."""
    from starflow_jax.core.regular_files import read_text

    if file is None:
        return ""
    try:
        text = read_text(file, 2**20)
    except UnicodeDecodeError as error:
        raise CommandError(f"--notes {file} contains bytes that are not UTF-8") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"--notes {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise CommandError(f"--notes {file} is empty")
    return text


def _results(workdir: Path | None) -> tuple[tuple[str, ...], ...]:
    """The table of the likelihoods that other commands wrote into the folder of a run, with its header."""
    from starflow_jax.reports.likelihood_results import HEADER, read_likelihoods

    rows = read_likelihoods(workdir).rows if workdir is not None and workdir.is_dir() else []
    return (HEADER, *rows) if rows else ()
