"""The options of `starflow evaluate --metrics`."""

from __future__ import annotations

import argparse
import os
import sys

from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.arguments import Parser, choice, integer, real
from starflow_jax.cli.options.denoising import add_denoising
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.parameter_form import add_parameter_form
from starflow_jax.cli.options.paths import function_name, network_name
from starflow_jax.cli.options.solver import add_solver_options
from starflow_jax.cli.options.stored import read_path, work_path
from starflow_jax.core.choices import Resize, Split, choices
from starflow_jax.core.registries import METRICS
from starflow_jax.core.storage.places import shown
from starflow_jax.evaluation.samples.sample_quality_defaults import BATCH, BITS, CHUNK, FOLDER, NUM_SAMPLES


def add_quality_options(parser: Parser) -> None:
    """Declares --metrics and its options."""
    before = parser.flags()
    group = parser.add_argument_group("quality of samples")
    option = group.add_argument
    option(
        "--metrics",
        type=_names,
        metavar="NAME,...",
        help=f"of {', '.join(METRICS.names())}, {BITS} (bits/dim)",
    )
    option("--num-samples", type=integer(16, 10**8), metavar="N", help=f"pictures a guidance (default {NUM_SAMPLES})")
    option("--guidance", type=_weights, metavar="W,...", help="guidance weights (default: that of the configuration)")
    option(
        "--annealed-guidance",
        action="store_const",
        const=True,
        help="TARFlow: weights grow along the sequence, from 0 to W (default: the configuration's)",
    )
    option(
        "--features",
        type=network_name,
        metavar="FILE|digits|MODULE:FUNCTION",
        help="the feature network: weights of FID's Inception (torch-fidelity, pytorch-fid), the small digit "
        "classifier that this command trains (default for digits), or a function of uint8 [B, H, W, C] that "
        "returns features [B, d] or (features, logits)",
    )
    option(
        "--resize",
        type=choice(*choices(Resize)),
        metavar="NAME",
        help="how Inception's input is resized: half-pixel as pytorch-fid (default), tensorflow as torch-fidelity, or "
        "clean (bicubic, antialiased) as clean-fid",
    )
    option(
        "--reference",
        type=choice(*choices(Split)),
        metavar="SPLIT",
        help="real images to compare with: train (default) or test; the other split is measured, too, as a baseline",
    )
    option(
        "--real",
        type=read_path,
        metavar="FOLDER|FILE.npz",
        help="other real images to compare with: a folder, or an .npz file with uint8 `image` [n, H, W, C]; required "
        "for runs on precomputed latents",
    )
    option(
        "--clip",
        type=function_name,
        metavar="MODULE:FUNCTION",
        help="metric clip: a function of (images, captions) that returns their features",
    )
    option(
        "--caption",
        dest="captions",
        action="append",
        metavar="TEXT|FILE.txt",
        help="runs on captions: captions to sample from in turn (repeatable)",
    )
    option("--text-encoder", type=read_path, metavar="DIR", help="runs on captions: the text encoder that reads them")
    option("--decoder", type=read_path, metavar="DIR", help="latents: decode them with this autoencoder")
    option(
        "--out", type=work_path, metavar="DIR", help=f"folder of results and features (default: {FOLDER} in --workdir)"
    )
    option("--chunk", type=integer(16, 10**6), metavar="N", help=f"images per file of features (default {CHUNK})")
    option("--sample-batch", type=integer(1), metavar="N", help=f"images sampled together (default {BATCH})")
    option("--temperature", type=real(), metavar="X", help="factor of the noise (default: the configuration's)")
    option("--attention-temperature", type=real(above=True), metavar="X", help="divides attention logits (default 1)")
    add_denoising(group)
    add_solver_options(parser)
    add_parameter_form(parser)
    flags = {field: flag for field, flag in parser.flags().items() if field not in before and field != "metrics"}
    parser.set_defaults(quality_flags=flags)


def check_quality_options(arguments: argparse.Namespace) -> None:
    """Raises CommandError for options without --metrics, and for results that cannot be written."""
    if arguments.metrics is None:
        for name, flag in arguments.quality_flags.items():
            if getattr(arguments, name) is not None:
                raise CommandError(f"{flag} requires --metrics, got {flag} alone")
        return
    if arguments.out is None and shown(arguments.workdir) != str(arguments.workdir):
        raise CommandError(
            f"--metrics requires --out where --workdir is an address, got {shown(arguments.workdir)} alone"
        )
    out = arguments.out if arguments.out is not None else arguments.workdir / FOLDER
    if arguments.json is not None and arguments.json.absolute() in (out.absolute(), *out.absolute().parents):
        raise CommandError(
            f"--json must name a file, got {arguments.json}, which contains or is the folder --out {out}"
        )
    if arguments.json is not None and out.resolve() in arguments.json.resolve().parents:
        raise CommandError(f"--json must name a file outside the folder --out {out}, got {arguments.json}")
    if arguments.workdir.is_dir() and (out.is_dir() or not out.exists()):
        check_writable("--out", out / "quality.json")


def import_from_current_directory(*names: str | None) -> None:
    """Adds the current directory to the import path if one of the names is "module:function", as `python -m` does."""
    if any(":" in name for name in names if name is not None) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    allowed_names = (*METRICS.names(), BITS)
    for name in names:
        if name not in allowed_names or names.count(name) > 1:
            allowed = ", ".join(allowed_names)
            raise argparse.ArgumentTypeError(f"must be some of {allowed}, joined by commas, each once, got {text!r}")
    return names


def _weights(text: str) -> tuple[float, ...]:
    weights = tuple(real()(part) for part in text.split(","))
    if len(set(weights)) < len(weights):
        raise argparse.ArgumentTypeError(f"must name every weight once, got {text!r}")
    return weights
