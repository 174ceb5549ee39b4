"""`starflow evaluate`: held-out bits/dim and Bayes-rule accuracy of a trained run, or the quality of its samples."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.quantise import add_quantise
from starflow_jax.cli.options.sample_quality import (
    add_quality_options,
    check_quality_options,
    import_from_current_directory,
)
from starflow_jax.cli.options.solver import solver_request
from starflow_jax.cli.options.stored import output_file, run_path
from starflow_jax.cli.options.trained_model import add_checkpoint
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark, skipped_lines
from starflow_jax.core.choices import Split, choices

if TYPE_CHECKING:
    from starflow_jax.evaluation.likelihood.vector_likelihood import VectorScores

ORDER = 40
COMPILES = True

DESCRIPTION = """\
Scores a trained run on held-out images; with --metrics, measures images that it generates.

bits/dim: of the integer pixels under uniform dequantisation, averaged over images and draws of the noise; an
upper bound of the exact code length. Two standard errors: over images (of another test set) and over draws (of more
draws of the noise).
accuracy: argmax over classes y of p(x | y), averaged over the draws of an image.
A run on vectors of numbers gives the mean log-likelihood in nats, exact, and the accuracy.
A noise-conditioned flow has a density at every noise level; --noise-level chooses one. starflow sweep scores data with
Gaussian noise of given levels, each at its own level.

With --metrics the command generates --num-samples images for each --guidance, computes their features with a network,
and compares them with real images: fid, kid, is (Inception Score), pr (precision and recall), clip (CLIP score).
Features are stored in chunks, so that the same command continues after it was stopped or killed. --out receives the
results as JSON and CSV, a plot, and a grid of images for each guidance. FID depends on the number of images: compare
equal numbers only."""

EXAMPLES = """\
examples:
  starflow evaluate --workdir runs/digits
  starflow evaluate --workdir runs/digits --draws 16 --json digits.json
  starflow evaluate --workdir runs/digits --metrics fid,kid,pr,bpd --num-samples 2000 --guidance 0,1,2,3
  starflow evaluate --workdir runs/imagenet --metrics fid,is --features pt_inception-2015-12-05-6726825d.pth
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "evaluate", help="bits/dim, accuracy, FID and other metrics of a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--workdir", required=True, type=run_path, metavar="DIR", help="folder of a trained run")
    parser.add_argument(
        "--draws",
        type=integer(1, 10**6),
        metavar="N",
        help="draws of the dequantisation noise (default: the configuration's)",
    )
    parser.add_argument(
        "--split", type=choice(*choices(Split)), default="test", help="data split: test (default) or train"
    )
    parser.add_argument(
        "--batch", type=integer(1), metavar="N", help="images scored together (default: the configuration's)"
    )
    parser.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of the noise (default 0)"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--noise-level",
        type=real(above=True),
        metavar="T",
        help="noise level that a noise-conditioned flow scores images at (default: its lowest one)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    add_quantise(parser)
    add_quality_options(parser)
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.metrics is None:
        check_quality_options(arguments)
        return _score(arguments)
    return _measure(arguments)


def _score(arguments: argparse.Namespace) -> int:
    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation import scores_table
    from starflow_jax.evaluation.evaluation_requests import EvaluateRequest
    from starflow_jax.evaluation.likelihood.run_scores import evaluate_run
    from starflow_jax.evaluation.likelihood.scored_source import open_scored_source
    from starflow_jax.evaluation.likelihood.vector_likelihood import evaluate_vectors, is_run_on_vectors
    from starflow_jax.training import load_run

    request = build_request(EvaluateRequest, arguments, ema=not arguments.no_ema)
    join(arguments)
    layout = layout_of_command(arguments)
    with sentences(load_run, open_scored_source, is_run_on_vectors, evaluate_vectors):
        vectors = evaluate_vectors(request, layout=layout) if is_run_on_vectors(request.workdir) else None
    if vectors is not None:
        return _report_vectors(arguments, vectors)
    with sentences(load_run, open_scored_source):
        result = evaluate_run(request, layout=layout, on_skipped=skipped_lines)
    if not is_first():
        return 0
    data = result.config.data
    print(scores_table([result.scores.to_dict()]))
    print(
        f"{result.images} images of {result.source_name}, {result.draws} draws, step {result.step}, "
        f"{'EMA of the parameters' if result.ema else 'last parameters'}, {result.scores.seconds:.1f} s"
    )
    if result.noise_level is not None:
        print(f"Scored at the noise level {result.noise_level:g}.")
    elif data.noise == "gaussian":
        print(
            f"The model was trained on Gaussian noise of {data.noise_std:g}, which is far wider than "
            "a pixel level: its bits/dim are loose."
        )
    if arguments.json is not None:
        write_json(arguments.json, result.to_dict())
        print(f"JSON: {arguments.json}")
    return 0


def _report_vectors(arguments: argparse.Namespace, scores: VectorScores) -> int:
    from starflow_jax.core.figures import write_json

    if not is_first():
        return 0
    print(scores.table())
    print(f"{scores.vectors} vectors of {scores.dims:g} numbers, step {scores.step}, {scores.seconds:.1f} s")
    if arguments.json is not None:
        write_json(arguments.json, scores.to_dict())
        print(f"JSON: {arguments.json}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    check_quality_options(arguments)

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.likelihood.scored_source import open_scored_source
    from starflow_jax.evaluation.samples import generator_setup, networks
    from starflow_jax.evaluation.samples.features.feature_network import named_function
    from starflow_jax.evaluation.samples.guidance_sweep import generate_missing
    from starflow_jax.evaluation.samples.metrics.metric_report import metric_table
    from starflow_jax.evaluation.samples.reference_sources import open_references
    from starflow_jax.evaluation.samples.reference_statistics import reference_statistics
    from starflow_jax.evaluation.samples.sample_measurement import lock_folder, measure_samples, write_sample_quality
    from starflow_jax.evaluation.samples.sample_quality_request import SampleQualityRequest
    from starflow_jax.training import load_run

    captions = None if arguments.captions is None else tuple(read_captions(arguments.captions))
    request = build_request(
        SampleQualityRequest,
        arguments,
        ema=not arguments.no_ema,
        captions=captions,
        solver=solver_request(arguments),
    )
    join(arguments)
    layout = layout_of_command(arguments)
    import_from_current_directory(request.features, request.clip)
    with sentences(
        load_run,
        generator_setup.open_generator,
        open_references,
        networks.open_feature_network,
        named_function,
        generator_setup.chunk_folder,
        lock_folder,
        reference_statistics,
        generate_missing,
        open_scored_source,
    ):
        result = measure_samples(request, layout=layout, on_skipped=skipped_lines, warn=remark)
    if result is None:
        return 0
    print(metric_table(result.rows, result.baseline, request.sample_metrics))
    print(
        f"{request.num_samples} images per guidance weight against {result.reference_count} of {result.reference}, "
        f"with the {result.network}; step {result.step}, "
        f"{'EMA of the parameters' if result.ema else 'last parameters'}, "
        f"{time.perf_counter() - start:.1f} s"
    )
    for warning in result.warnings():
        remark(f"warning: {warning}")
    if result.bits is not None:
        print(f"bits/dim {result.bits.bits_per_dim.mean:.4f}, which guidance does not affect")
    write_sample_quality(result)
    print(f"results, plot, images: {request.folder}/quality.json, .csv, .png, pictures-*.png")
    if arguments.json is not None:
        write_json(arguments.json, result.to_dict())
        print(f"JSON: {arguments.json}")
    return 0
