"""Atomic writing of files and folders: they are written under a temporary name and then renamed."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starflow_jax.core.storage.local_moves import move_over


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; the file written there is renamed to `path` on exit.

    On an error the temporary file is removed and an existing file is left unchanged. The temporary name keeps the
    suffix, from which image writers infer the format.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        move_over(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(name: str) -> str | None:
    """The name of the file that `replacing` was writing under this temporary name; None for another name."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}((?:\.[^.]*)?)", name)
    return None if match is None else match[1] + match[2]


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `path`, which is renamed to `path` on exit; `path` must be absent or empty.

    On an error the temporary folder is removed. Missing parent folders are created.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        move_over(temporary, path)  # this also replaces an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
