"""What a video begins with: a picture, a clip to go on with, or the source of a translation."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.remarks import remark

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.sampling.latent_shapes import RunAutoencoder
    from starflow_jax.solvers import SlidingWindow


@dataclasses.dataclass(frozen=True, eq=False)
class GivenFrames:
    """How the videos begin.

    Attributes:
      frames: T of the whole video, in frames of the flow.
      prefix: uint8 [P, H, W, C], or of a run on latents these, float32; None where nothing is given.
      pixels: uint8 [Q, H, W, C], what latents are given of; else None.
      word: a word that goes before every caption, or None.
      fps: of the file that was given, None where there is none or it does not say.
    """

    frames: int
    prefix: np.ndarray | None = None
    word: str | None = None
    fps: float | None = None
    pixels: np.ndarray | None = None


def read_given(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    size: tuple[int, int],
    window: SlidingWindow,
    autoencoder: RunAutoencoder | None,
) -> GivenFrames:
    """Reads what --image, --continue or --video name, fitted to `size`, and settles how long the video is.

    Options count frames of pixels, of which an autoencoder of videos makes fewer.

    Raises:
      CommandError: more than one of them, a file that cannot be read, or a length that does not go with it.
    """
    given = {"--image": arguments.image, "--continue": arguments.continued, "--video": arguments.video}
    named = {name: path for name, path in given.items() if path is not None}
    if len(named) > 1:
        raise CommandError(f"{' and '.join(named)} exclude each other")
    trained = config.data.frames
    asked = _asked_frames(arguments.frames, autoencoder)
    if not named:
        return GivenFrames(asked or trained)
    [(name, path)] = named.items()
    if autoencoder is None:
        clip = _read(name, path, size, config.flow.channels)
    else:
        stride = autoencoder.stride
        clip = _read(name, path, (size[0] * stride, size[1] * stride), autoencoder.pixel_channels)
    from starflow_jax.models.text.templates import EXTEND, TRANSLATE

    known = _known_words(config)
    latent = len(clip.frames) if autoencoder is None else autoencoder.latent_frames(len(clip.frames))
    if name == "--video":
        if TRANSLATE not in known:
            raise CommandError(f"--video needs a run trained with {TRANSLATE} captions, got one without that word")
        frames = _translation_length(asked, latent, trained, autoencoder)
        pictures = clip.frames[: _pixel_frames(frames // 2, autoencoder)]
        return _given(frames, pictures, autoencoder, TRANSLATE, clip.fps)
    frames = asked or trained
    used = _pixel_frames(min(latent, 1 if name == "--image" else window.num_context), autoencoder)
    pictures = clip.frames[:1] if name == "--image" else clip.frames[-used:]
    if name == "--continue" and used < len(clip.frames):
        remark(
            f"the last {used} of the {len(clip.frames)} frames of {path} are given: "
            "the context of a window (--context), in whole frames of the flow"
        )
    in_all = _pixel_frames(frames, autoencoder)
    if in_all <= len(pictures):
        raise CommandError(f"--frames must be above the {len(pictures)} frames given by {name}, got {in_all}")
    word = EXTEND if name == "--continue" and EXTEND in known else None
    return _given(frames, pictures, autoencoder, word, clip.fps if name == "--continue" else None)


def _given(
    frames: int, pictures: np.ndarray, autoencoder: RunAutoencoder | None, word: str | None, fps: float | None
) -> GivenFrames:
    if autoencoder is None:
        return GivenFrames(frames, pictures, word, fps)
    return GivenFrames(frames, autoencoder.encode(pictures), word, fps, pictures)


def _known_words(config: ExperimentConfig) -> tuple[str, ...]:
    """The words of a vocabulary that say what is given; a pretrained encoder reads both."""
    from starflow_jax.models.text.templates import EXTEND, TRANSLATE

    if config.data.text_encoder is not None:
        return (EXTEND, TRANSLATE)
    return () if config.text is None else config.text.vocabulary


def _pixel_frames(frames: int, autoencoder: RunAutoencoder | None) -> int:
    return frames if autoencoder is None else autoencoder.pixel_frames(frames)


def _asked_frames(frames: int | None, autoencoder: RunAutoencoder | None) -> int | None:
    """--frames in frames of the flow."""
    if frames is None or autoencoder is None:
        return frames
    latent = autoencoder.latent_frames(frames)
    if autoencoder.pixel_frames(latent) != frames:
        step = autoencoder.autoencoder.frame_stride
        raise CommandError(f"--frames must be 1 plus a multiple of {step} for this autoencoder, got {frames}")
    return latent


def _read(name: str, path: Path, size: tuple[int, int], channels: int):
    from starflow_jax.media import read_video

    if channels not in (1, 3):
        raise CommandError(f"{name} needs a run on grey or RGB pixels, got one on {channels} channels")
    with sentences(read_video):
        return read_video(path, size=size, channels=channels)


def _translation_length(frames: int | None, source: int, trained: int, autoencoder: RunAutoencoder | None) -> int:
    """Frames of source and target together: both as long, no longer than trained on."""
    half = trained // 2
    if half < 1:
        raise CommandError(f"--video needs a run on clips of at least 2 frames, got {trained}")
    if frames is None:
        return 2 * min(half, source)
    most = 2 * min(half, source)
    if frames % 2 or frames > most:
        if autoencoder is not None and autoencoder.autoencoder.frame_stride > 1:
            step, limit = autoencoder.autoencoder.frame_stride, autoencoder.pixel_frames(most)
            raise CommandError(
                f"--frames must be {1 + step} plus a multiple of {2 * step} and at most {limit} with --video (the "
                f"source, then as many new frames of the flow), got {autoencoder.pixel_frames(frames)}"
            )
        raise CommandError(
            f"--frames must be even and at most {most} with --video (the source, then as many new ones; "
            f"the run was trained on {trained}, the source has {source}), got {frames}"
        )
    return frames
