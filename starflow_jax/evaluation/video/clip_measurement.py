"""Measures video files, with reference clips, real clips and a run that gives their likelihood."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.atomic_writing import replacing_folder
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import finite
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.evaluation.evaluation_requests import RunRequest, VideoQualityRequest
from starflow_jax.evaluation.likelihood.scored_source import (
    OnSkipped,
    check_on_pixels,
    ignore_skipped,
    open_scored_source,
)
from starflow_jax.evaluation.likelihood.video_score_run import video_clips
from starflow_jax.evaluation.likelihood.video_scores import Clip, score_clips, source_clips
from starflow_jax.evaluation.video import clip_report as report
from starflow_jax.evaluation.video.clip_metrics import ClipQuality, Tracking, clip_quality, group_figures
from starflow_jax.flows.parameters import Params
from starflow_jax.media import read_video
from starflow_jax.media.medium import VIDEOS
from starflow_jax.training import load_run


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredClips:
    """Clips and their quality.

    Attributes:
      groups: the measured clips, "videos" and perhaps "real"; summary: of every group, see `group_figures`.
    """

    groups: dict[str, list[ClipQuality]]
    summary: Mapping[str, Any]

    def tables(self) -> list[str]:
        """Markdown tables of the clips, their motion and their drift."""
        clips = report.clips_table(self.groups["videos"])
        return [clips, report.motion_table(self.summary), report.drift_table(self.summary)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            name: self.summary[name] | {"each": [clip.to_dict() for clip in clips]}
            for name, clips in self.groups.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _Inputs:
    """Clips to be measured together: names, captions, frames, and bits/dim of every frame or None."""

    names: Sequence[str]
    captions: Sequence[str]
    frames: Sequence[np.ndarray]
    bits: Sequence[np.ndarray | None]


def measure_clips(request: VideoQualityRequest, *, on_skipped: OnSkipped = ignore_skipped) -> MeasuredClips:
    """Measures the clips of a request.

    Args:
      on_skipped: called with the examples of the run's data that could not be read.

    Raises:
      RequestError: files that do not exist or do not match.
      ValueError: see `load_run`, `read_video`, `open_scored_source`, `video_scores.check_request` and `clip_quality`.
    """
    paths, references, real_paths = (clip_paths(request, name) for name in ("video", "reference", "real"))
    captions = _captions(request, "caption", len(paths))
    require(
        not references or len(references) == len(paths),
        "{reference} must be given once for each of {0} videos, got {1}",
        len(paths),
        len(references),
    )
    scorer = None if request.run is None else _Scorer.load(request.run)
    size, channels = (request.size, 3) if scorer is None else (scorer.size, scorer.config.flow.channels)
    videos, originals, real = (
        [_read(path, size, channels) for path in group] for group in (paths, references, real_paths)
    )
    _check_references(paths, videos, references, originals)
    bits: Sequence[np.ndarray | None] = [None] * len(videos) if scorer is None else scorer.bits(paths, captions)
    inputs = {"videos": _Inputs(distinct_names(paths), captions, videos, bits)}
    if real:
        real_bits: Sequence[np.ndarray | None] = [None] * len(real)
        real_captions = [""] * len(real)
        if request.real_caption is not None:
            real_captions = _captions(request, "real_caption", len(real))
            if scorer is not None:  # without a caption, a conditional likelihood could not be compared
                real_bits = scorer.bits(real_paths, real_captions)
        inputs["real"] = _Inputs(distinct_names(real_paths), real_captions, real, real_bits)
    elif scorer is not None and request.held_out is not None:
        inputs["real"] = scorer.held_out(request.held_out, on_skipped)
    groups = {name: _measured(request, group, originals if name == "videos" else []) for name, group in inputs.items()}
    return MeasuredClips(groups, {name: finite(group_figures(clips)) for name, clips in groups.items()})


def write_clips(out: Path, measured: MeasuredClips) -> None:
    """Writes report.md, frames.csv, drift.png and motion.png into a new folder."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    groups = measured.groups
    labels = list(dict.fromkeys(label for clips in groups.values() for clip in clips for label in clip.curves))
    table.writerow(["group", "clip", "caption", "frame", "row", "column", *labels])
    for name, clips in groups.items():
        for clip in clips:
            for frame, (row, column) in enumerate(clip.path):
                curves = [clip.curves.get(label, ()) for label in labels]
                cells = [f"{curve[frame]:.6g}" if frame < len(curve) else "" for curve in curves]
                table.writerow([name, clip.name, clip.caption, frame, f"{row:.4f}", f"{column:.4f}", *cells])
    images = "![drift](drift.png)\n\n![motion](motion.png)\n"
    page = "\n\n".join(["# Quality of clips", *measured.tables(), images])
    with replacing_folder(out) as folder:
        (folder / "frames.csv").write_text(text.getvalue(), encoding="utf-8")
        (folder / "report.md").write_text(page, encoding="utf-8")
        report.plot_drift(folder / "drift.png", measured.summary)
        report.plot_motion(folder / "motion.png", groups)


def clip_paths(request: VideoQualityRequest, field: str) -> list[Path]:
    """The clips that a field names: files, folders of PNGs, and the video files in other folders, sorted by name.

    Raises:
      RequestError: a path that does not exist.
    """
    clips: list[Path] = []
    for path in getattr(request, field):
        require(path.exists(), f"{{{field}}} {{0}} does not exist", path)
        clips.extend((VIDEOS.of_folder(path) if path.is_dir() else []) or [path])
    return clips


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The file names of clips, preceded by as many folders as make them distinct; equal paths have equal names."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    names = [path.name for path in paths]
    return [
        name if names.count(name) == 1 else Path(*path.parts[-depth:]).as_posix()
        for name, path in zip(names, paths, strict=True)
    ]


def _captions(request: VideoQualityRequest, field: str, count: int) -> list[str]:
    captions = list(getattr(request, field))
    require(
        len(captions) in (1, count),
        f"{{{field}}} must be given once, or once for each video, got {{0}} for {{1}}",
        len(captions),
        count,
    )
    return captions * (count if len(captions) == 1 else 1)


def _read(path: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    frames = read_video(path, size=size, channels=None if size is None else channels).frames
    require(len(frames) >= 2, "{0} must be a clip of at least two frames, got {1}", path, len(frames))
    return frames


def _check_references(
    paths: Sequence[Path], videos: Sequence[np.ndarray], references: Sequence[Path], originals: Sequence[np.ndarray]
) -> None:
    """Raises RequestError for a reference whose size differs from that of its video; channels may differ."""
    # Without references there is nothing to check.
    for path, video, reference, original in zip(paths, videos, references, originals, strict=False):
        expected, actual = (f"{a.shape[1]} x {a.shape[2]}" for a in (video, original))
        if expected != actual:
            raise RequestError(
                "{reference} {0} must have the size of {video} {1}, {2}, got {3}; {size} ROWSxCOLUMNS resizes both",
                reference,
                path,
                expected,
                actual,
            )


def _measured(request: VideoQualityRequest, inputs: _Inputs, references: Sequence[np.ndarray]) -> list[ClipQuality]:
    tracking = Tracking(request.direction_frames, request.block, request.reach)
    return [
        clip_quality(
            frames,
            name=inputs.names[index],
            caption=inputs.captions[index],
            reference=references[index] if references else None,
            bits=inputs.bits[index],
            tracking=tracking,
        )
        for index, frames in enumerate(inputs.frames)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Scorer:
    """A trained run on clips that gives bits/dim of frames."""

    config: ExperimentConfig
    params: Params
    seed: int
    draws: int

    @classmethod
    def load(cls, request: RunRequest) -> _Scorer:
        """Loads the run; raises RequestError for a run on latents or on still images."""
        config, _, params, _ = load_run(request.workdir, ema=request.ema, step=request.step)
        check_on_pixels(config)
        require(bool(config.data.frames), "{workdir} must be a run on clips, got one on still images")
        return cls(config, params, request.seed, request.draws or config.evaluate.draws)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.config.flow.image_shape

    def bits(self, paths: Sequence[Path], captions: Sequence[str]) -> list[np.ndarray]:
        """Bits/dim of every frame of video files under their captions, float64 [T] each."""
        return self._score(video_clips(paths, captions, self.config))

    def held_out(self, count: int, on_skipped: OnSkipped) -> _Inputs:
        """Held-out clips of the run's data, frames uint8 0..255."""
        source = open_scored_source(self.config, "test", count, on_skipped)
        clips = source_clips(source, self.config, min(count, len(source)), name="held out")
        frames = [np.rint(clip.pixels * (255.0 / (clip.levels - 1))).astype(np.uint8) for clip in clips]
        return _Inputs([clip.name for clip in clips], [clip.caption for clip in clips], frames, self._score(clips))

    def _score(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        scores = score_clips(self.params, self.config, clips, jax.random.key(self.seed), draws=self.draws)
        return [score.frames for score in scores]
