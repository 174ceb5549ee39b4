"""`starflow score`: exact likelihood of clips, by clip, by frame and by token."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.devices import add_mesh, add_processes, join, layout_of_command
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.scored_data import check_on_pixels, scored_source
from starflow_jax.cli.process_group import is_first
from starflow_jax.core.choices import Split, choices

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.evaluation.likelihood.video_scores import Clip, ClipSurprise

ORDER = 50

DESCRIPTION = """\
Says how surprising clips are to a trained run: held-out ones, or video files.

bits/dim of a frame is that of its density given the frames before it, exact, with the noise of training added
and averaged over draws of it. For a run on Gaussian noise it is the density of the noisy frame at the resolution
of one pixel level: it compares clips and frames, it is no code length. --out receives frames.png (bits/dim
against the frame), surprise.png (which tokens of each frame surprise), frames.csv and tokens.npz (the numbers).
A clip longer than the run's is scored in windows, as it would be drawn: each frame given those before it in its
window, windows after the first under the caption of a clip that goes on."""

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
    option("--workdir", required=True, type=Path, metavar="DIR", help="folder of a trained run")
    option("--out", required=True, type=Path, metavar="DIR", help="a new folder for pictures and numbers")
    option(
        "--video",
        action="append",
        type=Path,
        metavar="FILE",
        help="a video, or a folder of PNGs, to score (repeatable)",
    )
    option(
        "--caption",
        action="append",
        metavar="TEXT",
        help="of the videos: one for all, or one for each in turn (default: none)",
    )
    option("--split", type=choice(*choices(Split)), help="clips of the run's data: test (default) or train")
    option("--num", type=integer(1, 10**6), metavar="N", help="how many of them (default 16)")
    option("--draws", type=integer(1, 10**6), metavar="N", help="draws of the noise (default: the configuration's)")
    option("--context", type=integer(0), metavar="N", help="frames given to every later window (default: half of one)")
    option("--batch", type=integer(1), default=16, metavar="N", help="clips at a time (default 16)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    option("--no-ema", action="store_true", help="score with the last parameters, not their running mean")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    add_mesh(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    _check_options(arguments)
    check_new_folder("--out", arguments.out)
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import jax

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.likelihood import video_scores as surprise
    from starflow_jax.training import load_run

    join(arguments)
    layout = layout_of_command(arguments)
    with sentences(load_run):
        config, _, params, step = load_run(
            arguments.workdir, ema=not arguments.no_ema, layout=layout, step=arguments.step
        )
    check_on_pixels(config)
    if arguments.video:
        clips = video_clips(arguments.video, arguments.caption or [""], config)
    else:
        clips = _split_clips(arguments.split or "test", arguments.num or 16, config)
    draws = arguments.draws or config.evaluate.draws
    with sentences(surprise.check_request):
        found = surprise.score_clips(
            params,
            config,
            clips,
            jax.random.key(arguments.seed),
            draws=draws,
            batch_size=arguments.batch,
            context=arguments.context,
        )
    if not is_first():
        return 0
    print(clips_table(found), end="\n\n")
    if config.data.frames:
        print(frames_table(found), end="\n\n")
    if config.data.noise == "gaussian":
        print(f"Densities of the clips with Gaussian noise of {config.data.noise_std:g} added, as in training.")
    _write(arguments.out, found)
    print(f"{len(found)} clips, {draws} draws, step {step}; written: {arguments.out}")
    if arguments.json is not None:
        figures = {"workdir": str(arguments.workdir), "step": step, "seed": arguments.seed, "draws": draws}
        write_json(arguments.json, figures | surprise_figures(found))
        print(f"figures: {arguments.json}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises CommandError for options that do not go together."""
    if not arguments.video:
        if arguments.caption:
            raise CommandError("--caption belongs to --video; clips of the run's data have captions of their own")
        return
    for name in ("split", "num"):
        if getattr(arguments, name) is not None:
            raise CommandError(f"--{name} belongs to clips of the run's data, got --video as well")
    captions, videos = arguments.caption or [], arguments.video
    if len(captions) > 1 and len(captions) != len(videos):
        raise CommandError(f"--caption must be given once or once a --video, got {len(captions)} for {len(videos)}")


def _split_clips(split: Any, count: int, config: ExperimentConfig) -> list[Clip]:
    """The first clips (or images) of the run's own data, under their own conditions."""
    from starflow_jax.evaluation.likelihood.video_scores import source_clips
    from starflow_jax.training.step.frozen_text import load_text

    source = scored_source(config, split, count)
    with sentences(load_text):
        return source_clips(source, config, min(count, len(source)), name=split)


def video_clips(paths: Sequence[Path], captions: Sequence[str], config: ExperimentConfig) -> list[Clip]:
    """Video files, brought to the size and channels of the run's data."""
    import jax.numpy as jnp
    import numpy as np

    from starflow_jax.evaluation.likelihood.video_scores import Clip, file_pixels
    from starflow_jax.media import read_video
    from starflow_jax.sampling.videos.video_plan import caption_reader, later_text, text_states
    from starflow_jax.training.step.inputs import condition

    if not config.data.frames:
        raise CommandError("--video needs a run on video, got one on still images")
    captions = list(captions) * (len(paths) if len(captions) == 1 else 1)
    later: Any = None
    if config.text is not None or config.data.text_encoder is not None:
        with sentences(caption_reader, text_states):
            reader = caption_reader(config)
            states: Any = text_states(config, captions, reader)
        later = later_text(config, captions, reader)
    else:
        if any(captions):
            raise CommandError("--caption needs a run that reads captions, got one that does not")
        states = condition(jnp.full(len(paths), -1, jnp.int32), config.flow)
    clips = []
    for place, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        with sentences(read_video):
            frames = read_video(path, size=config.flow.image_shape, channels=config.flow.channels).frames
        pixels, levels = file_pixels(frames, config.data)
        own, going_on = (None if rows is None else np.asarray(rows[place]) for rows in (states, later))
        clips.append(Clip(path.name, caption, pixels, levels, own, going_on))
    return clips


def clips_table(found: Sequence[ClipSurprise]) -> str:
    """bits/dim of every clip."""
    from starflow_jax.core.figures import text_table

    rows = [("clip", "caption", "frames", "bits/dim", "s.e. (draws)")]
    for of_clip in found:
        clip, frames = of_clip.clip, str(len(of_clip.frames))
        rows.append((clip.name, clip.caption, frames, _number(of_clip.bits_per_dim), _number(of_clip.draw_error)))
    return text_table(rows)


def frames_table(found: Sequence[ClipSurprise]) -> str:
    """Mean bits/dim of every frame over the clips, and of all clips."""
    from starflow_jax.core.figures import text_table
    from starflow_jax.evaluation.likelihood.video_scores import mean_per_clip, mean_per_frame

    rows = [("frame", "bits/dim", "s.e. (clips)", "clips")]
    for frame, (mean, error, count) in enumerate(mean_per_frame(found)):
        rows.append((str(frame), _number(mean), _number(error), str(count)))
    mean, error = mean_per_clip(found)
    rows.append(("clip", _number(mean), _number(error), str(len(found))))
    return text_table(rows)


def surprise_figures(found: Sequence[ClipSurprise]) -> dict[str, Any]:
    """The figures as plain values."""
    from starflow_jax.evaluation.likelihood.video_scores import mean_per_clip, mean_per_frame

    mean, error = mean_per_clip(found)
    return {
        "bits_per_dim": {"mean": mean, "clip_error": error, "clips": len(found)},
        "frames": [{"mean": m, "clip_error": e, "clips": count} for m, e, count in mean_per_frame(found)],
        "clips": [
            {
                "name": of_clip.clip.name,
                "caption": of_clip.clip.caption,
                "bits_per_dim": of_clip.bits_per_dim,
                "draw_error": of_clip.draw_error,
                "frames": of_clip.frames.tolist(),
            }
            for of_clip in found
        ],
    }


def _write(out: Path, found: Sequence[ClipSurprise]) -> None:
    """frames.csv, tokens.npz, frames.png, surprise.png."""
    import csv
    import io

    import numpy as np

    from starflow_jax.core.files import replacing_folder
    from starflow_jax.evaluation.likelihood.video_score_plots import draw_surprise, plot_frames

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["clip", "caption", "frame", "bits_per_dim"])
    for of_clip in found:
        for frame, bits in enumerate(of_clip.frames):
            table.writerow([of_clip.clip.name, of_clip.clip.caption, frame, f"{bits:.6f}"])
    # One array a clip, since clips may differ in length.
    maps = {f"clip_{place}": of_clip.tokens.mean(axis=0) for place, of_clip in enumerate(found)}
    with replacing_folder(out) as folder:
        (folder / "frames.csv").write_text(text.getvalue(), encoding="utf-8")
        np.savez_compressed(folder / "tokens.npz", **maps)
        plot_frames(folder / "frames.png", found)
        draw_surprise(folder / "surprise.png", found)


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"
