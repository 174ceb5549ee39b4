"""Captions on the command line: given as text, or as files with one caption a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.core.regular_files import check_file

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment_config import ExperimentConfig

MAX_FILE_BYTES = 2**20


def read_captions(texts: Sequence[str]) -> list[str]:
    """The captions of --caption options: the text itself, or the lines of a file whose name ends in .txt.

    Empty lines of a file are left out; an empty option is the empty caption.

    Raises:
      CommandError: a file that is missing, unreadable or too large, or holds no caption.
    """
    captions: list[str] = []
    for text in texts:
        if text.lower().endswith(".txt"):
            captions.extend(_read_file(Path(text)))
        else:
            captions.append(text)
    return captions


def with_text_encoder(config: ExperimentConfig, path: Path | None) -> ExperimentConfig:
    """The experiment with the folder of --text-encoder as its `data.text_encoder`; unchanged for None.

    Raises:
      CommandError: the experiment reads no captions, or reads them as words of a vocabulary.
    """
    from starflow_jax.sampling import loaded_run

    with sentences():
        return loaded_run.with_text_encoder(config, path)


def _read_file(path: Path) -> list[str]:
    try:
        check_file(path)
        size = path.stat().st_size
        if not path.is_file():  # reading a named pipe blocks
            raise CommandError(f"--caption file {path} must be a text file, got a folder, pipe or device")
        if size > MAX_FILE_BYTES:
            raise CommandError(f"--caption file {path} must contain at most {MAX_FILE_BYTES} bytes, got {size}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"--caption file {path} must be text in UTF-8, got other bytes") from error
    except OSError as error:
        raise CommandError(f"--caption file {path} cannot be read: {error.strerror or error}") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise CommandError(f"--caption file {path} must contain at least one caption, got none")
    return captions
