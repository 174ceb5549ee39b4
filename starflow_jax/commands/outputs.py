"""Where results go, checked before anything is computed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from starflow_jax.commands.errors import CommandError


def check_writable(name: str, path: Path) -> None:
    """Raises CommandError unless a file could be made at `path`; leaves nothing behind.

    Folders that are missing on the way would be created.
    """
    if path.is_dir():
        raise CommandError(f"{name} must name a file, got the folder {path}")
    _check_folder(name, path, path.parent)


def check_new_folder(name: str, path: Path) -> None:
    """Raises CommandError unless `path` is, or could become, an empty folder; leaves nothing behind."""
    if path.exists() and not path.is_dir():
        raise CommandError(f"{name} must name a folder, got the file {path}")
    if path.is_dir() and any(path.iterdir()):
        raise CommandError(f"{name} must be an empty or a new folder, got {path}, which holds files")
    _check_folder(name, path, path.parent)


def _check_folder(name: str, path: Path, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    try:
        # Trying says more than permissions do: a read-only file system, a full disk, a parent that is a file.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"{name} cannot be written at {path}: {error.strerror or error}") from error
