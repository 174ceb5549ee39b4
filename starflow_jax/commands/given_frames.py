"""What a video begins with: a picture, a clip to go on with, or the source of a translation."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starflow_jax.commands.errors import CommandError, sentences
from starflow_jax.commands.remarks import remark

if TYPE_CHECKING:
    from starflow_jax.config.experiment import ExperimentConfig
    from starflow_jax.solvers import SlidingWindow


@dataclasses.dataclass(frozen=True, eq=False)
class GivenFrames:
    """How the videos begin.

    Attributes:
      frames: T of the whole video.
      prefix: uint8 [P, H, W, C], or None where nothing is given.
      word: a word that goes before every caption, or None.
      fps: of the file that was given, None where there is none or it does not say.
    """

    frames: int
    prefix: np.ndarray | None = None
    word: str | None = None
    fps: float | None = None


def read_given(
    arguments: argparse.Namespace, config: ExperimentConfig, size: tuple[int, int], window: SlidingWindow
) -> GivenFrames:
    """Reads what --image, --continue or --video name, fitted to `size`, and settles how long the video is.

    Raises:
      CommandError: more than one of them, a file that cannot be read, or a length that does not go with it.
    """
    given = {"--image": arguments.image, "--continue": arguments.continued, "--video": arguments.video}
    named = {name: path for name, path in given.items() if path is not None}
    if len(named) > 1:
        raise CommandError(f"{' and '.join(named)} exclude each other")
    trained = config.data.frames
    if not named:
        return GivenFrames(arguments.frames or trained)
    [(name, path)] = named.items()
    if config.data.on_latents:
        raise CommandError(f"{name} needs a run on grey or RGB pixels, got one on latents")
    clip = _read(name, path, size, config.flow.channels)
    from starflow_jax.text.captions import EXTEND, TRANSLATE

    known = () if config.text is None else config.text.vocabulary
    if name == "--video":
        if TRANSLATE not in known:
            raise CommandError(f"--video needs a run trained with {TRANSLATE} captions, got one without that word")
        frames = _translation_length(arguments.frames, len(clip.frames), trained)
        return GivenFrames(frames, clip.frames[: frames // 2], TRANSLATE, clip.fps)
    frames = arguments.frames or trained
    pictures = clip.frames
    if name == "--image":
        pictures = pictures[:1]
    elif len(pictures) > window.kept:
        remark(
            f"the last {window.kept} of the {len(pictures)} frames of {path} are given: "
            "the context of a window (--context)"
        )
        pictures = pictures[-window.kept :]
    if frames <= len(pictures):
        raise CommandError(f"--frames must be above the {len(pictures)} frames given by {name}, got {frames}")
    word = EXTEND if name == "--continue" and EXTEND in known else None
    return GivenFrames(frames, pictures, word, clip.fps if name == "--continue" else None)


def _read(name: str, path: Path, size: tuple[int, int], channels: int):
    from starflow_jax.media import read_video

    if channels not in (1, 3):
        raise CommandError(f"{name} needs a run on grey or RGB pixels, got one on {channels} channels")
    with sentences(read_video):
        return read_video(path, size=size, channels=channels)


def _translation_length(frames: int | None, source: int, trained: int) -> int:
    """Frames of source and target together: both as long, no longer than trained on."""
    half = trained // 2
    if half < 1:
        raise CommandError(f"--video needs a run on clips of at least 2 frames, got {trained}")
    if frames is None:
        return 2 * min(half, source)
    most = 2 * min(half, source)
    if frames % 2 or frames > most:
        raise CommandError(
            f"--frames must be even and at most {most} with --video (the source, then as many new ones; "
            f"the run was trained on {trained}, the source has {source}), got {frames}"
        )
    return frames
