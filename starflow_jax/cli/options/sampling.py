"""What is sampled and how: options that `starflow sample` and `starflow gallery` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.options.arguments import aspect, class_choice, integer, real
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.denoising import add_denoising
from starflow_jax.cli.options.parameter_form import add_parameter_form
from starflow_jax.cli.options.quantise import add_quantise
from starflow_jax.cli.options.solver import add_solver_options, solver_request
from starflow_jax.cli.options.stored import read_path
from starflow_jax.cli.options.trained_model import add_checkpoint

if TYPE_CHECKING:
    from starflow_jax.sampling.sample_requests import SampleRequest


def sample_request(arguments: argparse.Namespace) -> SampleRequest:
    """The request that the options describe.

    Raises:
      CommandError: values that do not go together, or a file of captions that cannot be read.
    """
    from starflow_jax.sampling.sample_requests import SampleRequest

    return build_request(
        SampleRequest,
        arguments,
        captions=None if arguments.captions is None else tuple(read_captions(arguments.captions)),
        solver=solver_request(arguments),
    )


def readers() -> tuple[Callable[..., Any], ...]:
    """The functions that read what a request names: their errors are about the input (`cli.errors.sentences`)."""
    from starflow_jax.media import read_video
    from starflow_jax.sampling import check_request
    from starflow_jax.sampling.captions import caption_reader
    from starflow_jax.sampling.latent_shapes import autoencoder_for
    from starflow_jax.sampling.video_requests import video_size
    from starflow_jax.sampling.videos.video_plan import plan_videos
    from starflow_jax.solvers import named_solver
    from starflow_jax.training.inverse.inverse_folder import load_inverse
    from starflow_jax.training.run_calibration import read_calibration
    from starflow_jax.training.step.frozen_text import load_text

    models = (autoencoder_for, load_text, caption_reader, read_calibration, load_inverse)
    return *models, read_video, named_solver, plan_videos, video_size, check_request


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Declares the options of how many samples of which classes, captions, frames and shapes."""
    option = parser.add_argument
    option(
        "--num",
        type=integer(1, 10**9),
        metavar="N",
        help="number of images, or of samples of every caption (default: the configuration's)",
    )
    option(
        "--candidates",
        type=integer(1, 10**6),
        metavar="K",
        help="sample K for every class or caption, keep the likeliest",
    )
    option("--keep", type=integer(1, 10**6), metavar="M", help="number of candidates to keep (default 1)")
    option(
        "--class",
        dest="label",
        type=class_choice,
        metavar="N|all|none",
        help="images: a class index or name, all classes in turn (default), or none",
    )
    _add_video_options(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Declares the options of how samples are drawn: guidance, solver, temperature, denoising, seed, checkpoint."""
    option = parser.add_argument
    option(
        "--guidance",
        type=real(),
        metavar="W",
        help="weight of classifier-free guidance, 0 for none (default: the configuration's)",
    )
    option(
        "--annealed-guidance",
        action="store_const",
        const=True,
        help="TARFlow: the weight grows along the sequence, from 0 to W (default: the configuration's)",
    )
    add_solver_options(parser)
    option("--temperature", type=real(), metavar="X", help="factor of the noise (default: the configuration's)")
    option(
        "--attention-temperature",
        type=real(above=True),
        default=1.0,
        metavar="X",
        help="divides attention logits; in TARFlow those of the unconditional half of guidance (default 1)",
    )
    add_denoising(parser)
    add_parameter_form(parser)
    add_quantise(parser)
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of the noise (default 0)")
    option(
        "--batch",
        dest="batch_size",
        type=integer(1),
        metavar="N",
        help="images or videos sampled together (default 64 or 8)",
    )
    option(
        "--decoder",
        type=read_path,
        metavar="DIR",
        help="latents: decode them with this autoencoder, such as one of starflow finetune-decoder",
    )
    add_checkpoint(parser)


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--caption",
        dest="captions",
        action="append",
        metavar="TEXT|FILE.txt",
        help="a caption, or a file with one caption per line (repeatable; default: the empty caption)",
    )
    option(
        "--text-encoder",
        type=read_path,
        metavar="DIR",
        help="folder of the text encoder that reads captions (default: data.text_encoder of the run)",
    )
    option("--image", type=read_path, metavar="FILE", help="videos: an image as the first frame")
    option(
        "--continue",
        dest="continued",
        type=read_path,
        metavar="FILE",
        help="videos: a video, or a folder of frames, to continue",
    )
    option(
        "--video",
        type=read_path,
        metavar="FILE",
        help="videos: a video to translate as the caption says; it comes first, followed by as many new frames",
    )
    option(
        "--frames",
        type=integer(1, 10**5),
        metavar="N",
        help="videos: number of frames, given ones included (default: as trained)",
    )
    option(
        "--fps",
        type=real(above=True),
        metavar="X",
        help="videos: frames per second (default: that of the given file, that of the data, or 8)",
    )
    option("--aspect", type=aspect, metavar="W:H", help="videos: another aspect ratio, such as 16:9, of the same area")
    option(
        "--window",
        type=integer(2, 10**4),
        metavar="N",
        help="videos: frames of a window, counted as the flow does (default: as trained)",
    )
    option(
        "--context",
        type=integer(1, 10**4),
        metavar="N",
        help="videos: frames of the window that overlap the window before it (default: about three quarters)",
    )
