"""`starflow video-quality`: quality, motion and drift of clips, by pixels and by likelihood."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.stored import output_file, output_path, read_path, run_path
from starflow_jax.cli.options.trained_model import add_checkpoint
from starflow_jax.cli.remarks import skipped_lines

ORDER = 80
COMPILES = True

DESCRIPTION = """\
Measures clips without a network: their motion, their drift, and their distance to a reference.

speed, consistency (cosine of successive displacements), evenness: of the centroid, of the whole frame (phase
correlation) and of blocks; direction: whether a clip moves as its caption says; static: nothing moves. drift: by how
much frame t differs from frame 0, in pixels and in the spectrum, which motion hardly changes, and with --workdir
bits/dim of frame t. PSNR and SSIM of every frame need --reference; --real (or --held-out) gives clips to compare the
rest with, since real clips move and change, too. --out receives report.md, frames.csv, drift.png and motion.png."""

EXAMPLES = """\
examples:
  starflow video-quality --video drawn --real recorded --out quality
  starflow video-quality --video a.mp4 --reference a_true.mp4 --out quality --json quality.json
  starflow video-quality --video drawn --caption captions.txt --workdir runs/video --held-out 40 --out quality
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "video-quality", help="quality, motion and drift of clips", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    kinds = "a video, a folder of frames, or a folder of videos (repeatable)"
    option("--video", action="append", required=True, type=read_path, metavar="PATH", help=kinds)
    option(
        "--reference", action="append", type=read_path, metavar="PATH", help="reference clip of each --video, in turn"
    )
    option(
        "--real", action="append", type=read_path, metavar="PATH", help="real clips to compare motion and drift with"
    )
    option(
        "--caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="caption of the videos: one for all, or one for each in turn; or a file with one caption per line",
    )
    option(
        "--real-caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="captions of the real clips, in the same form; required for their bits/dim (default: not scored)",
    )
    option("--out", required=True, type=output_path, metavar="DIR", help="a new folder for the report and the plots")
    option(
        "--workdir", type=run_path, metavar="DIR", help="a trained run on clips, which gives bits/dim of every frame"
    )
    option(
        "--held-out",
        type=integer(1, 10**6),
        metavar="N",
        help="with --workdir: number of its held-out clips to use as --real",
    )
    option("--size", metavar="HxW", help="fit frames to this size (default: the run's, or the files' own)")
    option(
        "--direction-frames",
        type=integer(1, 10**5),
        metavar="N",
        help="steps over which a caption's direction holds (default: a quarter of the frames)",
    )
    option("--block", type=integer(2, 512), default=8, metavar="N", help="side of the blocks that are tracked")
    option("--reach", type=integer(1, 64), default=4, metavar="N", help="largest displacement, in pixels per frame")
    option("--draws", type=integer(1, 10**6), metavar="N", help="draws of the noise (default: the configuration's)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="seed of the noise (default 0)")
    add_checkpoint(parser)
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    check_new_folder("--out", arguments.out)

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.evaluation_requests import VideoQualityRequest
    from starflow_jax.evaluation.likelihood import video_score_run, video_scores
    from starflow_jax.evaluation.likelihood.scored_source import open_scored_source
    from starflow_jax.evaluation.video.clip_measurement import measure_clips, write_clips
    from starflow_jax.evaluation.video.clip_metrics import clip_quality
    from starflow_jax.media import read_video
    from starflow_jax.training import load_run
    from starflow_jax.training.step.frozen_text import load_text

    request = build_request(
        VideoQualityRequest,
        arguments,
        video=tuple(arguments.video),
        reference=tuple(arguments.reference or ()),
        real=tuple(arguments.real or ()),
        caption=tuple(read_captions(arguments.caption or [""])),
        real_caption=tuple(read_captions(arguments.real_caption)) if arguments.real_caption else None,
        size=_size(arguments.size),
        ema=not arguments.no_ema,
    )
    with sentences(
        load_run,
        load_text,
        read_video,
        open_scored_source,
        video_score_run.video_clips,
        video_scores.check_request,
        clip_quality,
    ):
        measured = measure_clips(request, on_skipped=skipped_lines)
    print("\n\n".join(measured.tables()), end="\n\n")
    write_clips(arguments.out, measured)
    print(f"{len(measured.groups['videos'])} clips; written: {arguments.out}")
    if arguments.json is not None:
        write_json(arguments.json, measured.to_dict())
        print(f"JSON: {arguments.json}")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    """Parses ROWSxCOLUMNS as two integers."""
    if text is None:
        return None
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and 0 < int(rows) <= 8192 and 0 < int(columns) <= 8192):
        raise CommandError(f"--size must be ROWSxCOLUMNS of at most 8192, such as 480x832, got {text!r}")
    return int(rows), int(columns)
