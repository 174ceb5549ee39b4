"""`starflow study`: applications of exact likelihood, on a trained run of small images."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.stored import output_file, output_path, run_path, runs_path
from starflow_jax.cli.options.trained_model import add_checkpoint
from starflow_jax.cli.remarks import skipped_lines

ORDER = 70
COMPILES = True

DESCRIPTION = """\
Applies the exact likelihood of a run on still images to several tasks, on its own data:

- classification by the Bayes rule, and its calibration with a reliability diagram; and by one forward and backward
  pass in place of one pass per class (runs with classes);
- detection of out-of-distribution images (photographs, negatives, turned and faint images, shuffled pixels, noise,
  constant ones): AUROC of the plain likelihood, which can fail, and of corrected scores; and the test of typicality;
- filtering: some labels are exchanged and some images damaged, and likelihood has to find them (classes);
- ranked sampling: are the likeliest of many samples better, and less diverse? (classes)
- memorisation: are training images likelier, and are samples copies of them?
- maps of likelihood ratios: which tokens of an image speak for one class against another.

With --reference, a second run such as a smaller flow of the same data: memorisation and out-of-distribution images by
the ratio of both likelihoods, and its maps.

--out receives report.md and a PNG file for each."""

EXAMPLES = """\
examples:
  starflow study --workdir runs/digits --out study
  starflow study --workdir runs/digits --draws 16 --candidates 64 --out study --json study.json
  starflow study --workdir runs/digits --reference runs/small --out study
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "study", help="applications of likelihood, on a run's data", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", required=True, type=run_path, metavar="DIR", help="folder of a trained run")
    option("--out", required=True, type=output_path, metavar="DIR", help="a new folder for the report and the plots")
    option("--reference", type=runs_path, metavar="DIR", help="a second run, for likelihood ratios (its newest step)")
    option("--num", type=integer(2, 10**6), metavar="N", help="images of each split (default: all)")
    option("--draws", type=integer(1, 10**4), default=4, metavar="N", help="draws of the noise per image (default 4)")
    option("--candidates", type=integer(2, 10**5), default=32, metavar="K", help="samples per class (default 32)")
    option(
        "--keep",
        type=integer(2, 10**5),
        default=8,
        metavar="M",
        help="number of likeliest samples to keep per class (default 8)",
    )
    option(
        "--mislabelled", type=real(), default=0.1, metavar="X", help="share of exchanged labels to find (default 0.1)"
    )
    option("--damaged", type=real(), default=0.05, metavar="X", help="share of damaged images to find (default 0.05)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of all random choices (default 0)")
    option(
        "--noise-level",
        type=real(above=True),
        metavar="T",
        help="noise level that a noise-conditioned flow scores images at (default: its lowest one)",
    )
    add_checkpoint(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    check_new_folder("--out", arguments.out)

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.applications.study_report import tables
    from starflow_jax.evaluation.applications.study_run import run_study, write_study
    from starflow_jax.evaluation.evaluation_requests import StudyRequest
    from starflow_jax.evaluation.likelihood.scored_source import open_scored_source
    from starflow_jax.training import load_run

    request = build_request(StudyRequest, arguments, ema=not arguments.no_ema)
    with sentences(load_run, open_scored_source):
        result = run_study(request, on_skipped=skipped_lines)
    write_study(arguments.out, result)
    print("\n\n".join(tables(result.values).values()), end="\n\n")
    print(f"step {result.step}, {result.draws} draws; written: {arguments.out / 'report.md'}")
    if arguments.json is not None:
        write_json(arguments.json, result.values)
        print(f"JSON: {arguments.json}")
    return 0
