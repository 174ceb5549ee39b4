"""`starflow sample`: pictures or videos drawn from a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, class_choice, integer, real
from starflow_jax.cli.options.captions import with_text_encoder
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.model_config import add_model_config, sampled_as_released
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.solver import add_solver_options
from starflow_jax.core.choices import Denoise, choices

ORDER = 30

DESCRIPTION = """\
Draws pictures or videos from a trained run: noise, through the inverse of the flow, to pixels.

The sequential solver is exact: one network evaluation a token. Jacobi iterates whole chunks of tokens until
they stop moving, usually far fewer evaluations; a chunk that did not settle is reported. Sliding commits tokens one
by one as they settle, selective and gs-jacobi treat the deep block apart, and auto takes what starflow calibrate found
best for each block.

Videos begin with given frames where there are some, and hold them as they were given. More frames than the run
was trained on are drawn in windows, each of which begins with the last frames before it. A caption that the run
cannot read is reported and left out; the exit code is 2 only if none is left."""

EXAMPLES = """\
examples:
  starflow sample --workdir runs/digits --num 64 --out digits.png
  starflow sample --workdir runs/digits --num 64 --class 7 --guidance 1.5 --solver jacobi --out sevens.png
  starflow sample --workdir runs/digits --class 7 --candidates 64 --keep 8 --out likely_sevens.png
  starflow sample --workdir runs/t2i --text-encoder flan-t5-xl --caption "a corgi" --num 4 --out corgis.png
  starflow sample --model models/starflow-v --caption "a corgi looks at the camera" --frames 81 --fps 16 --out corgi.mp4
  starflow sample --workdir runs/video --caption "a seven moving left" --frames 24 --out seven.mp4
  starflow sample --workdir runs/video --caption captions.txt --num 4 --solver auto --out videos
  starflow sample --workdir runs/video --caption "a two moving up" --image first.png --out two.gif
  starflow sample --workdir runs/video --caption inverted --video source.mp4 --out inverted.mp4
  starflow sample --workdir runs/video --caption "a two moving up" --continue two.gif --frames 24 --out more.mp4
"""

# Options of one kind of run: the name in the namespace, and what a person typed.
_OF_VIDEOS = {
    "image": "--image",
    "continued": "--continue",
    "video": "--video",
    "frames": "--frames",
    "fps": "--fps",
    "aspect": "--aspect",
    "window": "--window",
    "context": "--context",
    "stream": "--stream",
}
_OF_PICTURES = {"label": "--class"}


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "sample", help="draw pictures or videos from a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", type=Path, metavar="DIR", help="folder of a trained run")
    option(
        "--model",
        type=Path,
        metavar="DIR",
        help="instead of --workdir: a folder of starflow port --assemble, with autoencoder and text encoder",
    )
    option(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="x.png: one grid (videos: a row each, a column a frame); x.mp4, x.gif: videos in a grid; x.npz: arrays; "
        "a name without a suffix: a new folder with a PNG or MP4 for each",
    )
    option(
        "--num",
        type=integer(1, 10**9),
        metavar="N",
        help="pictures, or videos of every caption (default: the configuration's)",
    )
    option(
        "--candidates", type=integer(1, 10**6), metavar="K", help="draw K of every class or caption, keep the likeliest"
    )
    option("--keep", type=integer(1, 10**6), metavar="M", help="how many of the candidates to keep (default 1)")
    option(
        "--class",
        dest="label",
        type=class_choice,
        metavar="N|all|none",
        help="pictures: a class, all classes in turn (default), or none",
    )
    _add_video_options(parser)
    option(
        "--guidance",
        type=real(),
        metavar="W",
        help="weight of classifier-free guidance, 0 for none (default: the configuration's)",
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
    option(
        "--denoise",
        type=choice(*choices(Denoise)),
        metavar="NAME",
        help="remove the training noise: none, score or learned (default: the configuration's)",
    )
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    option("--batch", type=integer(1), metavar="N", help="pictures or videos at a time (default 64 or 8)")
    option(
        "--scale",
        type=integer(1, 64),
        metavar="N",
        help="enlarge every pixel (default: up to about 64 pixels a picture, 128 a video)",
    )
    option(
        "--decoder",
        type=Path,
        metavar="DIR",
        help="latents: make pictures of them by this autoencoder, such as one of starflow finetune-decoder",
    )
    option("--no-ema", action="store_true", help="use the last parameters, not their running mean")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    add_model_config(parser, "which must be of this run's flow, for the guidance and solver")
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="what is shown, or a file with a caption a line (repeatable; default: nothing said)",
    )
    option(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="folder of the text encoder that reads captions (default: data.text_encoder of the run)",
    )
    option("--image", type=Path, metavar="FILE", help="videos: a picture as the first frame")
    option(
        "--continue",
        dest="continued",
        type=Path,
        metavar="FILE",
        help="videos: a video, or a folder of PNGs, to go on with",
    )
    option(
        "--video",
        type=Path,
        metavar="FILE",
        help="videos: a source to translate as the caption says; it comes first, as many new frames after it",
    )
    option(
        "--frames",
        type=integer(1, 10**5),
        metavar="N",
        help="videos: frames in all, given ones included (default: as trained)",
    )
    option(
        "--fps",
        type=real(above=True),
        metavar="X",
        help="videos: frames per second (default: the given file's, that of the data, or 8)",
    )
    option("--aspect", metavar="W:H", help="videos: another aspect ratio, such as 16:9, of the same area")
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
        help="videos: of these, frames that a window begins with (default: about three quarters)",
    )
    option(
        "--stream",
        action="store_const",
        const=True,
        help="videos: finish frame after frame instead of all together, on two devices where there are; says when the "
        "first one was there (files are written at the end all the same)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    _check_options(arguments)
    open_model(arguments)

    from starflow_jax.training import load_run
    from starflow_jax.training.step.frozen_autoencoder import decoded_by, load_encoder

    join(arguments)
    # A stream puts the deep block on one device and what follows it on another by itself.
    layout = None if arguments.stream else layout_of_command(arguments)
    with sentences(load_run, load_encoder, decoded_by):
        config, _, params, step = load_run(
            arguments.workdir, ema=not arguments.no_ema, layout=layout, step=arguments.step
        )
        config = sampled_as_released(arguments, config)
        if arguments.decoder is not None:
            config = decoded_by(config, arguments.decoder)
        else:
            load_encoder(config)  # before anything is drawn that could not be decoded
    config = with_text_encoder(config, arguments.text_encoder)
    foreign = _OF_PICTURES if config.data.frames else _OF_VIDEOS
    kind = "clips" if config.data.frames else "still images"
    for name, flag in foreign.items():
        if getattr(arguments, name) is not None:
            raise CommandError(f"{flag} does not go with the run in {arguments.workdir}, which is on {kind}")
    if config.data.frames:
        from starflow_jax.cli.sample_videos import draw_videos

        return draw_videos(arguments, config, params, step)
    from starflow_jax.cli.sample_images import draw_pictures

    return draw_pictures(arguments, config, params, step)


def open_model(arguments: argparse.Namespace) -> None:
    """Puts the parts of --model where the options of a run are; what is named besides goes before them."""
    if (arguments.model is None) == (arguments.workdir is None):
        raise CommandError("name one of --workdir, the folder of a run, and --model, an assembled folder")
    if arguments.model is None:
        return
    from starflow_jax.sampling.model_folder import load_model_folder

    with sentences():
        model = load_model_folder(arguments.model)
    arguments.workdir = model.flow
    arguments.decoder = arguments.decoder or model.autoencoder.with_scale
    arguments.text_encoder = arguments.text_encoder or model.text_encoder.path


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses what can be refused before the run is read."""
    out = arguments.out
    if out.suffix in (".png", ".npz", ".mp4", ".gif"):
        check_writable("--out", out)
    elif out.suffix:
        raise CommandError(
            "--out must end in .png or .npz (of videos also .mp4 or .gif), or be a folder without a suffix, "
            f"got {str(out)!r}"
        )
    else:
        check_new_folder("--out", out)
    if arguments.json is not None:
        check_writable("--json", arguments.json)
        if arguments.json.absolute() == out.absolute():
            raise CommandError(f"--json must be another file than --out, got {str(out)!r} for both")
    if arguments.keep is not None and arguments.candidates is None:
        raise CommandError(f"--keep goes with --candidates, got --keep {arguments.keep} alone")
    if arguments.candidates is not None:
        if arguments.num is not None:
            raise CommandError("--num and --candidates exclude each other: --candidates says how many are drawn")
        if (arguments.keep or 1) > arguments.candidates:
            raise CommandError(f"--keep must be at most --candidates {arguments.candidates}, got {arguments.keep}")
    if arguments.fps is not None and not 0.01 <= arguments.fps <= 240:
        raise CommandError(f"--fps must be from 0.01 to 240, got {arguments.fps:g}")
