"""Captions from the command line: as they stand, or one a line of a text file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_jax.commands.errors import CommandError, sentence
from starflow_jax.commands.remarks import remark

if TYPE_CHECKING:
    from starflow_jax.config.experiment import ExperimentConfig

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


def readable_captions(captions: Sequence[str], config: ExperimentConfig) -> tuple[list[int], dict[int, str]]:
    """Tells the captions that a run can read from those it cannot, which are reported on stderr.

    Returns:
      The places of those it can read, and why it cannot read the others, by place.

    Raises:
      CommandError: there is one caption, and the run cannot read it.
    """
    from starflow_jax.sampling.video_plan import text_states

    good, bad = [], {}
    for place, caption in enumerate(captions):
        try:
            text_states(config, [caption])
        except ValueError as error:
            if len(captions) == 1:
                raise CommandError(sentence(error)) from error
            bad[place] = sentence(error)
            remark(f"left out caption {place + 1} of {len(captions)}: {bad[place]}")
        else:
            good.append(place)
    return good, bad


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
