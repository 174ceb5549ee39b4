"""Where results go, checked before anything is computed."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starflow_jax.cli.errors import CommandError


def check_writable(name: str, path: Path) -> None:
    """Raises CommandError unless a file could be made at `path`; leaves nothing behind.

    Folders that are missing on the way would be created.
    """
    with _refusing(name, path):
        if path.is_dir():
            raise CommandError(f"{name} must name a file, got the folder {path}")
        _try(path)


def check_new_folder(name: str, path: Path) -> None:
    """Raises CommandError unless `path` is, or could become, an empty folder; leaves nothing behind."""
    with _refusing(name, path):
        if path.exists() and not path.is_dir():
            raise CommandError(f"{name} must name a folder, got the file {path}")
        if path.is_dir() and any(path.iterdir()):
            raise CommandError(f"{name} must be an empty or a new folder, got {path}, which holds files")
        _try(path)


@contextmanager
def _refusing(name: str, path: Path) -> Iterator[None]:
    """Turns an OSError into the refusal of an option; even asking whether a path exists can raise one."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{name} cannot be written at {path}: {error.strerror or error}") from error


def _try(path: Path) -> None:
    """Raises OSError unless something could be made at `path`."""
    # Files are written under a temporary name first, which is longer than their own.
    folder, names = path.parent, [f".{path.name}.{uuid.uuid4().hex}"]
    while not folder.exists():
        names.append(folder.name)
        folder = folder.parent
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).lstat()  # refuses a name that is too long
    # Trying says more than permissions do: a read-only file system, a full disk, a parent that is a file.
    with tempfile.TemporaryFile(dir=folder):
        pass
