"""Renaming and locking on a file system: the only place where the package does either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def move_over(source: Path, target: Path) -> None:
    """Renames a file over an existing one, or a folder over an empty one, atomically on one file system."""
    os.replace(source, target)


def move(source: Path, target: Path) -> Path:
    """Renames a file or folder to a name that is free; returns the new path."""
    return source.rename(target)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Locks a file or folder and yields whether it was free; always true where the file system has no locks.

    The operating system releases the lock when this process ends.

    Args:
      shared: whether other processes may hold a shared lock at the same time, such as those that only look.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield True
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:
            free = True
        yield free
    finally:
        os.close(handle)


@contextlib.contextmanager
def shared_until_exit(path: Path) -> Iterator[None]:
    """Locks a file together with other readers until this process ends; inside the block, one process at a time.

    Waits for another process that is in such a block. Does nothing where the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    shared = os.open(path, os.O_RDONLY)  # closed by the end of the process
    with open(f"{path}.lock", "ab") as alone:
        with contextlib.suppress(OSError):
            fcntl.flock(alone, fcntl.LOCK_EX)
            fcntl.flock(shared, fcntl.LOCK_SH)
        yield
