"""Captions from the command line: as they stand, or one a line of a text file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_jax.cli.errors import CommandError, sentence, sentences
from starflow_jax.cli.remarks import remark

if TYPE_CHECKING:
    import numpy as np

    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.training.step.frozen_text import FrozenText

MAX_FILE_BYTES = 2**20


def read_captions(given: Sequence[str]) -> list[str]:
    """The captions that --caption options name; those that end in .txt are files with a caption a line.

    Empty lines of a file are left out; an empty option is the empty caption.

    Raises:
      CommandError: a file that is missing, unreadable, too large, or holds no caption.
    """
    captions: list[str] = []
    for text in given:
        if text.lower().endswith(".txt"):
            captions.extend(_read_file(Path(text)))
        else:
            captions.append(text)
    return captions


def readable_captions(captions: Sequence[str], reader: FrozenText) -> tuple[list[int], dict[int, str]]:
    """Tells the captions that a run can read from those it cannot, which are reported on stderr.

    Returns:
      The places of those it can read, and why it cannot read the others, by place.

    Raises:
      CommandError: there is one caption, and the run cannot read it.
    """
    good, bad = [], {}
    for place, caption in enumerate(captions):
        try:
            reader.encoder.ids([caption])
        except ValueError as error:
            if len(captions) == 1:
                raise CommandError(sentence(error)) from error
            bad[place] = sentence(error)
            remark(f"left out caption {place + 1} of {len(captions)}: {bad[place]}")
        else:
            good.append(place)
    return good, bad


def with_text_encoder(config: ExperimentConfig, path: Path | None) -> ExperimentConfig:
    """The experiment with the folder of --text-encoder as its `data.text_encoder`; as it is where that is None.

    Raises:
      CommandError: an experiment that reads no captions, or reads them as words.
    """
    if path is None:
        return config
    with sentences():
        return dataclasses.replace(config, data=dataclasses.replace(config.data, text_encoder=str(path)))


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
    """Captions of pictures, and their states.

    Attributes:
      captions: n that can be read; text: float32 [n, L, D], their states; null: float32 [1, L, D], of the empty one.
      left_out: (caption, reason) of those that cannot be read.
    """

    captions: tuple[str, ...]
    text: np.ndarray
    null: np.ndarray
    left_out: tuple[tuple[str, str], ...]


def read_said(arguments: argparse.Namespace, config: ExperimentConfig) -> Said | None:
    """What --caption says of pictures; None where classes (or nothing) decide what is drawn.

    Raises:
      CommandError: captions of a run that reads none, besides --class, or none of which can be read.
    """
    from starflow_jax.sampling.videos.video_plan import caption_reader, text_states
    from starflow_jax.training.step.frozen_text import load_text

    reads = config.text is not None or config.data.text_encoder is not None
    if arguments.caption is None and (arguments.label is not None or config.data.text_encoder is None):
        return None
    if arguments.label is not None:
        raise CommandError("--caption and --class exclude each other")
    if not reads:
        raise CommandError(
            f"--caption does not go with the run in {arguments.workdir}, which has no captions"
            + ("; --text-encoder reads them" if config.flow.text_dim else "")
        )
    captions = read_captions(arguments.caption or [""])
    with sentences(load_text):
        reader = caption_reader(config)
    good, bad = readable_captions(captions, reader)
    if not good:
        raise CommandError("--caption must hold a caption that the run can read, got none")
    kept = tuple(captions[place] for place in good)
    left_out = tuple((captions[place], reason) for place, reason in bad.items())
    return Said(kept, text_states(config, kept, reader), text_states(config, [""], reader), left_out)


def _read_file(path: Path) -> list[str]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CommandError(f"--caption file {path} must hold at most {MAX_FILE_BYTES} bytes, got {size}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"--caption file {path} must be text in UTF-8, got other bytes") from error
    except OSError as error:
        raise CommandError(f"--caption file {path} cannot be read: {error.strerror or error}") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise CommandError(f"--caption file {path} must hold at least one caption, got none")
    return captions
