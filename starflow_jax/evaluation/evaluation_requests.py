"""Requests of evaluations: all that a command of `starflow` asks for, as one frozen value that is checked when built.

    request = ScoreRequest(Path("runs/video"), video=(Path("a.mp4"),), caption=("a seven moving left",))
    scored = score_videos(request)

A field that is None takes the value of the run's configuration, or none. `RequestError` names the fields.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from starflow_jax.core.choices import Quantisation, Split, choices
from starflow_jax.core.config.checks import check_choice
from starflow_jax.core.request_errors import require


def _check_integer(name: str, value: int | None, minimum: int) -> None:
    if value is not None:
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        require(valid, f"{{{name}}} must be an integer >= {minimum}, got {{0!r}}", value)


def _check_noise_level(level: float | None) -> None:
    if level is not None:
        number = isinstance(level, int | float) and not isinstance(level, bool)
        require(number and 0 < level < math.inf, "{noise_level} must be a finite number above 0, got {0!r}", level)


def _check_split(split: Split | None, name: str = "split") -> None:
    require(split in (None, "train", "test"), f"{{{name}}} must be one of test, train, got {{0!r}}", split)


def _check_quantise(scheme: Quantisation | None) -> None:
    check_choice("quantise", scheme, (None, *choices(Quantisation)))


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """Fields that name the parameters of a run, and the noise.

    Attributes:
      workdir: folder of the run; step: of the checkpoint, None for the newest.
      ema: whether to use the exponential moving average of the parameters, where the run has one.
      seed: of all noise; draws: samples of the dequantisation noise for every example, None for the configuration's.
    """

    workdir: Path
    step: int | None = dataclasses.field(default=None, kw_only=True)
    ema: bool = dataclasses.field(default=True, kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)
    draws: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_integer("step", self.step, 0)
        _check_integer("seed", self.seed, 0)
        _check_integer("draws", self.draws, 1)


@dataclasses.dataclass(frozen=True)
class EvaluateRequest(RunRequest):
    """Bits/dim and accuracy of a run on still images.

    Attributes:
      split: of the run's data; batch: images at a time, None for the configuration's.
      noise_level: that a noise-conditioned flow reads; None for its lowest one.
      quantise: how the kernels of a float32 run are stored while it is scored (`FlowConfig.quantise`).
    """

    split: Split = dataclasses.field(default="test", kw_only=True)
    batch: int | None = dataclasses.field(default=None, kw_only=True)
    noise_level: float | None = dataclasses.field(default=None, kw_only=True)
    quantise: Quantisation | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_split(self.split)
        _check_integer("batch", self.batch, 1)
        _check_noise_level(self.noise_level)
        _check_quantise(self.quantise)


@dataclasses.dataclass(frozen=True)
class ScoreRequest(RunRequest):
    """Likelihood of clips by clip, frame and token.

    Attributes:
      video: video files, or folders of PNGs; empty for clips of the run's data.
      caption: of the videos, one for all or one for each; empty for none.
      split, num: which clips of the run's data, and how many; None for 16 of the test split.
      context: frames given to every window of a long clip after the first; None for half of a window.
      batch: clips at a time.
      quantise: as in `EvaluateRequest`.
    """

    video: tuple[Path, ...] = ()
    caption: tuple[str, ...] = ()
    split: Split | None = None
    num: int | None = None
    context: int | None = None
    batch: int = 16
    quantise: Quantisation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_quantise(self.quantise)
        _check_split(self.split)
        _check_integer("num", self.num, 1)
        _check_integer("context", self.context, 0)
        _check_integer("batch", self.batch, 1)
        if not self.video:
            require(not self.caption, "{caption} requires {video}; clips of the run's data have their own captions")
            return
        for name in ("split", "num"):
            given = getattr(self, name) is not None
            require(not given, f"{{{name}}} applies only to clips of the run's data, got {{video}} as well")
        count = len(self.caption)
        require(
            count <= 1 or count == len(self.video),
            "{caption} must be given once, or once for each {video}, got {0} for {1}",
            count,
            len(self.video),
        )


@dataclasses.dataclass(frozen=True)
class StudyRequest(RunRequest):
    """Applications of exact likelihood on a run's own images.

    Attributes:
      num: images of each split, None for all.
      candidates: samples of every class; keep: of which the likeliest are selected.
      mislabelled, damaged: shares of wrong labels and of damaged images that filtering has to find.
      noise_level: that a noise-conditioned flow reads where it scores images; None for its lowest one.
      reference: folder of a second run, such as a smaller flow, for likelihood ratios; its newest checkpoint is read.
    """

    num: int | None = None
    candidates: int = 32
    keep: int = 8
    mislabelled: float = 0.1
    damaged: float = 0.05
    noise_level: float | None = None
    reference: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_noise_level(self.noise_level)
        _check_integer("num", self.num, 2)
        _check_integer("candidates", self.candidates, 2)
        _check_integer("keep", self.keep, 2)
        for name in ("mislabelled", "damaged"):
            value = getattr(self, name)
            require(value >= 0, f"{{{name}}} must be a finite number >= 0, got {{0!r}}", value)
        require(
            self.keep <= self.candidates,
            "{keep} must be at most {candidates} {0}, got {1}",
            self.candidates,
            self.keep,
        )
        require(
            self.mislabelled + self.damaged <= 1,
            "{mislabelled} and {damaged} must sum to at most 1, got {0:g} and {1:g}",
            self.mislabelled,
            self.damaged,
        )


@dataclasses.dataclass(frozen=True)
class VideoQualityRequest:
    """Quality, motion and drift of clips, and with a run their likelihood.

    Attributes:
      video: clips: video files, folders of PNGs, or folders of videos.
      reference: the clip that each should equal, in turn; real: real clips, measured for comparison.
      caption: of the clips, one for all or one for each; real_caption: of the real clips, None for none, which are then
        not scored.
      workdir, step, ema, seed, draws: of a run on clips that gives bits/dim, see `RunRequest`; workdir None for none.
      held_out: number of held-out clips of the run's data to measure as real clips.
      size: (rows, columns) that frames are resized to; None for the run's, or for their own.
      direction_frames: displacements from the start over which a caption's direction holds; None for a quarter.
      block, reach: side of the blocks that are tracked, and the largest displacement, in pixels.
    """

    video: tuple[Path, ...]
    reference: tuple[Path, ...] = ()
    real: tuple[Path, ...] = ()
    caption: tuple[str, ...] = ("",)
    real_caption: tuple[str, ...] | None = None
    workdir: Path | None = None
    held_out: int | None = None
    size: tuple[int, int] | None = None
    direction_frames: int | None = None
    block: int = 8
    reach: int = 4
    step: int | None = None
    ema: bool = True
    seed: int = 0
    draws: int | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("held_out", 1), ("direction_frames", 1), ("block", 2), ("reach", 1), ("draws", 1)):
            _check_integer(name, getattr(self, name), minimum)
        require(len(self.video) > 0, "{video} must name at least one clip, got none")
        if self.workdir is None:
            for name in ("held_out", "draws", "step"):
                require(getattr(self, name) is None, f"{{{name}}} requires {{workdir}}, got none")
        require(self.real_caption is None or len(self.real) > 0, "{real_caption} requires {real}, got none")
        require(self.held_out is None or not self.real, "{held_out} and {real} are mutually exclusive")
        require(
            self.size is None or self.workdir is None,
            "{size} cannot be combined with {workdir}, whose clips have their own size",
        )

    @property
    def run(self) -> RunRequest | None:
        """The run that gives bits/dim; None without one."""
        if self.workdir is None:
            return None
        return RunRequest(self.workdir, step=self.step, ema=self.ema, seed=self.seed, draws=self.draws)
