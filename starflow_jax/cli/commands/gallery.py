"""`starflow gallery`: samples of a run on one HTML page, to share without a server."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import CommandError, sentence, sentences
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.devices import add_mesh, layout_of_command
from starflow_jax.cli.options.model_config import add_model_config, sampled_as_released
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.sampling import add_samples, add_sampling, readers, sample_request
from starflow_jax.cli.options.stored import output_file, output_path
from starflow_jax.cli.options.trained_model import add_trained_model
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_warnings import WRITE_NON_FINITE, check_finite, print_warnings

ORDER = 32
COMPILES = True

DESCRIPTION = """\
Draws images or videos as starflow sample does, computes the exact likelihood of each, and writes one HTML page that
contains them with their captions, likelihoods and settings. The page has no scripts and loads nothing, so it can be
sent or put on any web server. Paths of this computer are not written into it.

The folder holds index.html and gallery.json, which has the same figures."""

EXAMPLES = """\
examples:
  starflow gallery --workdir runs/digits --num 40 --guidance 1.5 --out gallery
  starflow gallery --workdir runs/video --caption captions.txt --num 4 --frames 24 --out gallery
  starflow gallery --model hf://ORG/NAME --class 7 --candidates 64 --keep 8 --out sevens
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "gallery", help="write samples with their likelihoods as an HTML page", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_trained_model(parser)
    option = parser.add_argument
    option("--out", required=True, type=output_path, metavar="DIR", help="folder of the page, new or empty")
    add_samples(parser)
    add_sampling(parser)
    option("--write-non-finite", action="store_true", help=WRITE_NON_FINITE)
    option("--json", type=output_file, metavar="FILE", help="also write the figures as JSON here")
    add_model_config(parser, "which must be of this run's flow, for the guidance and solver")
    add_mesh(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    check_new_folder("--out", arguments.out)

    from starflow_jax.core.figures import write_json
    from starflow_jax.reports.gallery import draw_gallery, write_gallery
    from starflow_jax.sampling.image_requests import SampledImages
    from starflow_jax.sampling.loaded_run import open_run
    from starflow_jax.sampling.sample_requests import RunRequest

    request = sample_request(arguments)
    run_request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    layout = layout_of_command(arguments)
    with sentences(open_run, *readers()):
        loaded = open_run(run_request, layout=layout, adapt=lambda config: sampled_as_released(arguments, config))
        gallery = draw_gallery(loaded, request, warn=remark)
    drawn = gallery.drawn
    if isinstance(drawn, SampledImages):
        what, values, report = "images", drawn.x, drawn.report
    else:
        what, values, report = "videos", drawn.samples.denoised[drawn.kept], drawn.samples.report
    check_finite(values, what, arguments.write_non_finite)
    print_warnings(report, what, untrained_null=False)
    try:
        page = write_gallery(gallery, arguments.out)
    except OSError as error:
        raise CommandError(sentence(error)) from error
    scores = gallery.log_likelihoods
    print(
        f"{len(scores)} {what} in {report.seconds:.2f} s; log-likelihood {scores.mean():.1f} nats in the mean, "
        f"{scores.min():.1f} to {scores.max():.1f}"
    )
    print(f"gallery: {page}")
    if arguments.json is not None:
        write_json(arguments.json, gallery.figures())
        print(f"JSON: {arguments.json}")
    return 0
