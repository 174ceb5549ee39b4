"""`starflow sample`: images or videos sampled from a trained run."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.model_config import add_model_config, sampled_as_released
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.sampling import add_samples, add_sampling, sample_request
from starflow_jax.cli.options.stored import output_file, output_path
from starflow_jax.cli.options.trained_model import add_trained_model
from starflow_jax.cli.sample_warnings import WRITE_NON_FINITE

ORDER = 30
COMPILES = True

DESCRIPTION = """\
Samples images or videos from a trained run: noise is inverted through the flow, denoised and decoded to pixels.

The sequential solver is exact and takes one network evaluation per token. Jacobi iterates chunks of tokens until they
converge, usually in far fewer evaluations; chunks that did not converge are reported. Sliding accepts tokens one by one
as they converge, selective and gs-jacobi treat the deep block separately, and auto takes the solver that starflow
calibrate measured to be best for each block.

A flow that was trained with noise of one level gives samples with that noise, which --denoise removes in one step. A
noise-conditioned flow (flow.noise_levels) samples at its highest level and can remove the noise over --levels levels.

Videos begin with the given frames, if any, which stay unchanged. Videos with more frames than the run was trained on
are sampled in windows, each of which begins with the last frames before it. A caption that the run cannot read is
reported and skipped; the exit code is 2 only if no caption is left."""

EXAMPLES = """\
examples:
  starflow sample --workdir runs/digits --num 64 --out digits.png
  starflow sample --workdir runs/digits --num 64 --class 7 --guidance 1.5 --solver jacobi --out sevens.png
  starflow sample --workdir runs/levels --denoise iterative --levels 30 --denoise-step sde --out digits.png
  starflow sample --workdir runs/digits --class 7 --candidates 64 --keep 8 --out likely_sevens.png
  starflow sample --workdir runs/t2i --text-encoder flan-t5-xl --caption "a corgi" --num 4 --out corgis.png
  starflow sample --model models/starflow-v --caption "a corgi looks at the camera" --frames 81 --fps 16 --out corgi.mp4
  starflow sample --workdir runs/video --caption "a seven moving left" --frames 24 --out seven.mp4
  starflow sample --workdir runs/moons --num 1000 --out points.csv
  starflow sample --workdir runs/video --caption captions.txt --num 4 --solver auto --out videos
  starflow sample --workdir runs/video --caption "a two moving up" --image first.png --out two.gif
  starflow sample --workdir runs/video --caption inverted --video source.mp4 --out inverted.mp4
  starflow sample --workdir runs/video --caption "a two moving up" --continue two.gif --frames 24 --out more.mp4
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "sample", help="sample images or videos from a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_trained_model(parser)
    option = parser.add_argument
    option(
        "--out",
        required=True,
        type=output_path,
        metavar="PATH",
        help="x.png: one grid (videos: a row for each, a column for each frame); x.mp4, x.gif: videos in a grid; "
        "x.npz: arrays; a name without a suffix: a new folder with a PNG or MP4 for each; of vectors x.npy, x.npz, "
        "x.csv, and x.png for the density of two numbers",
    )
    add_samples(parser)
    option(
        "--stream",
        action="store_const",
        const=True,
        help="videos: finish frame after frame instead of all together, on two devices if there are two, and report "
        "when the first frame was final (files are written at the end)",
    )
    add_sampling(parser)
    option(
        "--scale",
        type=integer(1, 64),
        metavar="N",
        help="enlarge every pixel (default: images up to about 64 pixels, videos up to 128)",
    )
    option("--write-non-finite", action="store_true", help=WRITE_NON_FINITE)
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    add_model_config(parser, "which must be of this run's flow, for the guidance and solver")
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    _check_outputs(arguments)

    from starflow_jax.cli.sample_images import sample_images
    from starflow_jax.cli.sample_vectors import sample_vectors
    from starflow_jax.cli.sample_videos import sample_videos
    from starflow_jax.sampling.loaded_run import open_run
    from starflow_jax.sampling.sample_requests import RunRequest

    request = sample_request(arguments)
    run_request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    join(arguments)
    # A stream chooses the devices of its blocks itself.
    layout = None if request.stream else layout_of_command(arguments)
    with sentences(open_run):
        run = open_run(run_request, layout=layout, adapt=lambda config: sampled_as_released(arguments, config))
    if run.config.data.frames:
        return sample_videos(arguments, run, request)
    if run.config.data.traits.vectors:
        return sample_vectors(arguments, run, request)
    return sample_images(arguments, run, request)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises CommandError unless the files of the command can be written."""
    out = arguments.out
    if out.suffix in (".png", ".npz", ".mp4", ".gif", ".npy", ".csv"):
        check_writable("--out", out)
    elif out.suffix:
        raise CommandError(
            "--out must end in .png or .npz (of videos also .mp4 or .gif, of vectors .npy or .csv), or be a folder "
            f"without a suffix, "
            f"got {str(out)!r}"
        )
    else:
        check_new_folder("--out", out)
    if arguments.json is not None and arguments.json.absolute() == out.absolute():
        raise CommandError(f"--json must be another file than --out, got {str(out)!r} for both")
