"""`starflow score`: exact likelihood of clips, by clip, by frame and by token."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.quantise import add_quantise
from starflow_jax.cli.options.stored import output_file, output_path, read_path, run_path
from starflow_jax.cli.options.trained_model import add_checkpoint
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import skipped_lines
from starflow_jax.core.choices import Split, choices

ORDER = 50
COMPILES = True

DESCRIPTION = """\
Computes the likelihood of clips under a trained run: held-out clips, or video files.

bits/dim of a frame are those of its exact density given the frames before it, with the noise of training added
and averaged over draws of it. For a run on Gaussian noise it is the density of the noisy frame at the resolution
of one pixel level: it compares clips and frames, but is not a code length. --out receives frames.png (bits/dim
against the frame), surprise.png (bits/dim of the tokens of each frame), frames.csv and tokens.npz (the numbers).
A clip longer than the run's is scored in windows, as it would be sampled: each frame given those before it in its
window, windows after the first under the caption of a continued clip."""

EXAMPLES = """\
examples:
  starflow score --workdir runs/video --num 20 --out scores
  starflow score --workdir runs/video --video a.mp4 --video b.gif --caption "a seven moving left" --out scores
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "score", help="likelihood of clips, frames and tokens", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("--workdir", required=True, type=run_path, metavar="DIR", help="folder of a trained run")
    option("--out", required=True, type=output_path, metavar="DIR", help="a new folder for plots and numbers")
    option(
        "--video",
        action="append",
        type=read_path,
        metavar="FILE",
        help="a video, or a folder of frames, to score (repeatable)",
    )
    option(
        "--caption",
        action="append",
        metavar="TEXT",
        help="caption of the videos: one for all, or one for each in turn (default: none)",
    )
    option("--split", type=choice(*choices(Split)), help="clips of the run's data: test (default) or train")
    option("--num", type=integer(1, 10**6), metavar="N", help="number of clips (default 16)")
    option("--draws", type=integer(1, 10**6), metavar="N", help="draws of the noise (default: the configuration's)")
    option(
        "--context",
        type=integer(0),
        metavar="N",
        help="frames that every window after the first begins with (default: half a window)",
    )
    option("--batch", type=integer(1), default=16, metavar="N", help="clips scored together (default 16)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of the noise (default 0)")
    add_checkpoint(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    add_quantise(parser)
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.evaluation.evaluation_requests import ScoreRequest

    request = build_request(
        ScoreRequest,
        arguments,
        video=tuple(arguments.video or ()),
        caption=tuple(arguments.caption or ()),
        ema=not arguments.no_ema,
    )
    check_new_folder("--out", arguments.out)

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.likelihood import video_score_run, video_scores
    from starflow_jax.evaluation.likelihood.scored_source import open_scored_source
    from starflow_jax.evaluation.likelihood.video_score_report import (
        clips_table,
        frames_table,
        score_values,
        write_scores,
    )
    from starflow_jax.training import load_run
    from starflow_jax.training.step.frozen_text import load_text

    join(arguments)
    layout = layout_of_command(arguments)
    with sentences(load_run, open_scored_source, load_text, video_score_run.video_clips, video_scores.check_request):
        result = video_score_run.score_videos(request, layout=layout, on_skipped=skipped_lines)
    if not is_first():
        return 0
    data, scores = result.config.data, result.clips
    print(clips_table(scores), end="\n\n")
    if data.frames:
        print(frames_table(scores), end="\n\n")
    if data.noise == "gaussian":
        print(f"Densities of the clips with Gaussian noise of {data.noise_std:g} added, as in training.")
    write_scores(arguments.out, scores)
    print(f"{len(scores)} clips, {result.draws} draws, step {result.step}; written: {arguments.out}")
    if arguments.json is not None:
        values = {"workdir": str(request.workdir), "step": result.step, "seed": request.seed, "draws": result.draws}
        write_json(arguments.json, values | score_values(scores))
        print(f"JSON: {arguments.json}")
    return 0
