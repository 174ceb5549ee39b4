"""Checks of the files that a command writes, before it computes anything."""

from __future__ import annotations

import argparse
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starflow_jax.cli.errors import CommandError
from starflow_jax.cli.options.paths import path as parse_path
from starflow_jax.core.atomic_writing import temporary_of


def output_file(text: str) -> Path:
    """Parses the path of a file that the command writes, and checks that it can be created; leaves nothing behind.

    Folders on the way that are missing count as creatable.
    """
    result = parse_path(text)
    try:
        _check_file(result)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be written at {result}: {error.strerror or error}") from None
    return result


def check_writable(name: str, path: Path) -> None:
    """Raises CommandError unless a file can be created at `path`; leaves nothing behind.

    Folders on the way that are missing count as creatable.
    """
    with _naming_option(name, path):
        _check_file(path)


def check_new_folder(name: str, path: Path, record: str | None = None) -> None:
    """Raises CommandError unless `path` is an empty folder or can be created as one; leaves nothing behind.

    Args:
      record: a file by which the folder of an earlier call is known, which is allowed, too, as is one in which
        writing it for the first time was interrupted.
    """
    with _naming_option(name, path):
        if path.exists() and not path.is_dir():
            raise CommandError(f"{name} must name a folder, got the file {path}")
        known = record is not None and (path / record).is_file()
        content = list(path.iterdir()) if path.is_dir() and not known else []
        if any(record is None or temporary_of(file.name) != record for file in content):
            raise CommandError(f"{name} must be an empty or a new folder, got {path}, which contains files")
        _create(path)


@contextmanager
def _naming_option(name: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a CommandError that names the option; even `Path.exists` can raise one."""
    try:
        yield
    except ValueError as error:
        raise CommandError(f"{name} {error}") from error
    except OSError as error:
        raise CommandError(f"{name} cannot be written at {path}: {error.strerror or error}") from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"must name a file, got the folder {path}")
    _create(path)


def _create(path: Path) -> None:
    """Raises OSError unless a file can be created at `path`."""
    # Files are written under a temporary name first, which is longer than the final one.
    folder, names = path.parent, [f".{path.name}.{uuid.uuid4().hex}"]
    while not folder.exists():
        names.append(folder.name)
        folder = folder.parent
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).lstat()  # raises for a name that is too long
    # Creating a file detects more than permissions show: a read-only file system, a full disk, a parent that is a file.
    with tempfile.TemporaryFile(dir=folder):
        pass
