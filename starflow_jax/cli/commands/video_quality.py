"""`starflow video-quality`: quality, motion and drift of clips, by pixels and by likelihood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.captions import read_captions
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.scored_data import check_on_pixels, scored_source

if TYPE_CHECKING:
    import numpy as np

    from starflow_jax.evaluation.likelihood.video_scores import Clip
    from starflow_jax.evaluation.video.clip_metrics import ClipQuality

ORDER = 80

DESCRIPTION = """\
Measures clips without a network: how they move, whether they change for the worse, how near they are to a reference.

speed, consistency (cosine of successive displacements), evenness: of the centroid, of the whole frame (phase
correlation) and of blocks; direction: whether a clip goes where its caption says; static: nothing moves. drift: by how
much frame t differs from frame 0, in pixels and in the spectrum, which motion hardly changes, and with --workdir
bits/dim of frame t. PSNR and SSIM of every frame need --reference; --real (or --held-out) gives clips to compare the
rest with: a real clip moves and changes, too. --out receives report.md, frames.csv, drift.png and motion.png."""

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
    kinds = "a video, a folder of PNGs, or a folder of videos (repeatable)"
    option("--video", action="append", required=True, type=Path, metavar="PATH", help=kinds)
    option("--reference", action="append", type=Path, metavar="PATH", help="what each of them should be, in turn")
    option("--real", action="append", type=Path, metavar="PATH", help="real clips to compare motion and drift with")
    option(
        "--caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="of the videos: one for all, or one for each in turn; or a file with one a line",
    )
    option(
        "--real-caption",
        action="append",
        metavar="TEXT|FILE.txt",
        help="of the real clips, in the same way; with --workdir, bits/dim need one (default: not scored)",
    )
    option("--out", required=True, type=Path, metavar="DIR", help="a new folder for the report and the pictures")
    option("--workdir", type=Path, metavar="DIR", help="a trained run on clips, which gives bits/dim of every frame")
    option("--held-out", type=integer(1, 10**6), metavar="N", help="with --workdir: so many of its clips as --real")
    option("--size", metavar="HxW", help="fit frames to this size (default: the run's, or the files' own)")
    option(
        "--direction-frames",
        type=integer(1, 10**5),
        metavar="N",
        help="steps over which a caption's direction holds (default: a quarter of the frames)",
    )
    option("--block", type=integer(2, 512), default=8, metavar="N", help="side of the blocks that are followed")
    option("--reach", type=integer(1, 64), default=4, metavar="N", help="how far they are followed, pixels a frame")
    option("--draws", type=integer(1, 10**6), metavar="N", help="draws of the noise (default: the configuration's)")
    option("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of the noise (default 0)")
    option("--no-ema", action="store_true", help="score with the last parameters, not their running mean")
    option("--step", type=integer(0), metavar="N", help="which checkpoint (default: the newest)")
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    size = _check_options(arguments)
    paths = _files("--video", arguments.video)
    captions = _captions("--caption", arguments.caption or [""], len(paths))
    references = _files("--reference", arguments.reference or [])
    if references and len(references) != len(paths):
        raise CommandError(f"--reference must be one for each of {len(paths)} videos, got {len(references)}")
    real_paths = _files("--real", arguments.real or [])

    from starflow_jax.core.figures import finite, write_json

    scorer = None if arguments.workdir is None else _Scorer(arguments)
    if scorer is not None:
        size = scorer.size
    videos = [_read(path, size, scorer) for path in paths]
    originals = [_read(path, size, scorer) for path in references]
    _check_references(paths, videos, references, originals)
    real = [_read(path, size, scorer) for path in real_paths]
    bits: Sequence[np.ndarray | None] = [None] * len(videos) if scorer is None else scorer.bits(paths, captions)
    groups = {"videos": _measured(arguments, names_apart(paths), captions, videos, bits, originals)}
    if real:
        said = _captions("--real-caption", arguments.real_caption or [""], len(real))
        # Without a caption a conditional likelihood would be no fair measure.
        scored = scorer is not None and arguments.real_caption is not None
        of_real = scorer.bits(real_paths, said) if scorer is not None and scored else [None] * len(real)
        groups["real"] = _measured(arguments, names_apart(real_paths), said, real, of_real, [])
    elif scorer is not None and arguments.held_out is not None:
        groups["real"] = _measured(arguments, *scorer.held_out(arguments.held_out), [])
    from starflow_jax.evaluation.video.clip_metrics import group_figures
    from starflow_jax.evaluation.video.clip_report import clips_table, drift_table, motion_table

    figures = {name: finite(group_figures(clips)) for name, clips in groups.items()}
    print("\n\n".join([clips_table(groups["videos"]), motion_table(figures), drift_table(figures)]), end="\n\n")
    _write(arguments.out, groups, figures)
    print(f"{len(videos)} clips; written: {arguments.out}")
    if arguments.json is not None:
        everything = {
            name: figures[name] | {"each": [clip.to_dict() for clip in clips]} for name, clips in groups.items()
        }
        write_json(arguments.json, everything)
        print(f"figures: {arguments.json}")
    return 0


def _check_options(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Refuses what can be refused before anything is read; the size that is asked for."""
    check_new_folder("--out", arguments.out)
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    if arguments.workdir is None:
        for name in ("held_out", "draws", "step"):
            if getattr(arguments, name) is not None:
                raise CommandError(f"--{name.replace('_', '-')} goes with --workdir, got none")
    if arguments.real_caption and not arguments.real:
        raise CommandError("--real-caption goes with --real, got none")
    if arguments.held_out is not None and arguments.real:
        raise CommandError("--held-out and --real exclude each other")
    if arguments.size is None:
        return None
    if arguments.workdir is not None:
        raise CommandError("--size does not go with --workdir, whose clips have a size of their own")
    rows, _, columns = arguments.size.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and 0 < int(rows) <= 8192 and 0 < int(columns) <= 8192):
        raise CommandError(f"--size must be ROWSxCOLUMNS of at most 8192, such as 480x832, got {arguments.size!r}")
    return int(rows), int(columns)


def _files(name: str, paths: Sequence[Path]) -> list[Path]:
    """The clips that an option names: files, folders of PNGs, and the video files of other folders, by name."""
    from starflow_jax.media.clip_reading import CLIP_SUFFIXES

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise CommandError(f"{name} {path} does not exist")
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in CLIP_SUFFIXES) if path.is_dir() else []
        found.extend(inside or [path])
    return found


def _captions(name: str, given: Sequence[str], count: int) -> list[str]:
    captions = read_captions(given)
    if len(captions) not in (1, count):
        raise CommandError(f"{name} must be given once or once a video, got {len(captions)} for {count}")
    return captions * (count if len(captions) == 1 else 1)


def _read(path: Path, size: tuple[int, int] | None, scorer: _Scorer | None) -> np.ndarray:
    from starflow_jax.media import read_video

    channels = 3 if scorer is None else scorer.channels
    with sentences(read_video):
        frames = read_video(path, size=size, channels=None if size is None else channels).frames
    if len(frames) < 2:
        raise CommandError(f"{path} must be a clip of two frames or more, got {len(frames)}")
    return frames


def _check_references(
    paths: Sequence[Path], videos: Sequence[np.ndarray], references: Sequence[Path], originals: Sequence[np.ndarray]
) -> None:
    """Raises CommandError for a reference of another size than its video; colours do not matter."""
    # Without references there is nothing to pair.
    for path, video, reference, original in zip(paths, videos, references, originals, strict=False):
        here, there = (f"{a.shape[1]} x {a.shape[2]}" for a in (video, original))
        if here != there:
            raise CommandError(
                f"--reference {reference} must be of the size of --video {path}, {here}, got {there}; "
                "--size ROWSxCOLUMNS fits both to one"
            )


def names_apart(paths: Sequence[Path]) -> list[str]:
    """What clips are called: files' names, and as many of the folders before them as tell all of them apart.

    A file that is given twice has the same name twice.
    """
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    names = [path.name for path in paths]
    return [
        name if names.count(name) == 1 else Path(*path.parts[-depth:]).as_posix()
        for name, path in zip(names, paths, strict=True)
    ]


def _measured(
    arguments: argparse.Namespace,
    names: Sequence[str],
    captions: Sequence[str],
    videos: Sequence[np.ndarray],
    bits: Sequence[np.ndarray | None],
    references: Sequence[np.ndarray],
) -> list[ClipQuality]:
    from starflow_jax.evaluation.video.clip_metrics import clip_quality

    found = []
    for place, (name, caption, frames) in enumerate(zip(names, captions, videos, strict=True)):
        with sentences(clip_quality):
            found.append(
                clip_quality(
                    frames,
                    name=name,
                    caption=caption,
                    reference=references[place] if references else None,
                    bits=bits[place],
                    direction_frames=arguments.direction_frames,
                    block=arguments.block,
                    reach=arguments.reach,
                )
            )
    return found


class _Scorer:
    """A trained run that gives bits/dim of frames."""

    def __init__(self, arguments: argparse.Namespace):
        from starflow_jax.training import load_run

        with sentences(load_run):
            self.config, _, self.params, _ = load_run(arguments.workdir, ema=not arguments.no_ema, step=arguments.step)
        check_on_pixels(self.config)
        if not self.config.data.frames:
            raise CommandError("--workdir must be a run on clips, got one on still images")
        self.size, self.channels = self.config.flow.image_shape, self.config.flow.channels
        self.draws, self.seed = arguments.draws or self.config.evaluate.draws, arguments.seed

    def bits(self, paths: Sequence[Path], captions: Sequence[str]) -> list[np.ndarray]:
        """Bits/dim of every frame of files under their captions, float64 [T] each."""
        from starflow_jax.cli.commands.score import video_clips

        return self._scored(video_clips(paths, captions, self.config))

    def held_out(self, count: int) -> tuple[list[str], list[str], list[np.ndarray], list[np.ndarray]]:
        """Names, captions, frames (uint8 0..255) and bits/dim of held-out clips of the run's data."""
        import numpy as np

        from starflow_jax.evaluation.likelihood.video_scores import source_clips
        from starflow_jax.training.step.frozen_text import load_text

        source = scored_source(self.config, "test", count)
        with sentences(load_text):
            clips = source_clips(source, self.config, min(count, len(source)), name="held out")
        frames = [np.rint(clip.pixels * (255.0 / (clip.levels - 1))).astype(np.uint8) for clip in clips]
        return [clip.name for clip in clips], [clip.caption for clip in clips], frames, self._scored(clips)

    def _scored(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        import jax

        from starflow_jax.evaluation.likelihood import video_scores as surprise

        with sentences(surprise.check_request):
            found = surprise.score_clips(self.params, self.config, clips, jax.random.key(self.seed), draws=self.draws)
        return [of_clip.frames for of_clip in found]


def _write(out: Path, groups: dict[str, list[ClipQuality]], figures: dict[str, Any]) -> None:
    """report.md, frames.csv, drift.png, motion.png."""
    import csv
    import io

    from starflow_jax.core.files import replacing_folder
    from starflow_jax.evaluation.video import clip_report as report

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    labels = list(dict.fromkeys(label for clips in groups.values() for clip in clips for label in clip.curves))
    table.writerow(["group", "clip", "caption", "frame", "row", "column", *labels])
    for name, clips in groups.items():
        for clip in clips:
            for frame, (row, column) in enumerate(clip.path):
                curves = [clip.curves.get(label, ()) for label in labels]
                cells = [f"{curve[frame]:.6g}" if frame < len(curve) else "" for curve in curves]
                table.writerow([name, clip.name, clip.caption, frame, f"{row:.4f}", f"{column:.4f}", *cells])
    parts = [report.clips_table(groups["videos"]), report.motion_table(figures), report.drift_table(figures)]
    pictures = "![drift](drift.png)\n\n![motion](motion.png)\n"
    with replacing_folder(out) as folder:
        (folder / "frames.csv").write_text(text.getvalue(), encoding="utf-8")
        (folder / "report.md").write_text("\n\n".join(["# Quality of clips", *parts, pictures]), encoding="utf-8")
        report.plot_drift(folder / "drift.png", figures)
        report.plot_motion(folder / "motion.png", groups)
