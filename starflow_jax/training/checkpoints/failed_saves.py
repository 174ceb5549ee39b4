"""What a save that failed leaves behind, and why it failed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path


def remove_unfinished(folder: Path, *, quiet_s: float, limit_s: float = 10.0) -> None:
    """Removes the temporary folders of unfinished saves, until none has reappeared for a while.

    If one part of a step fails, Orbax raises while its threads still write the other parts and create the folder again.
    """
    start = removed = time.monotonic()
    while (now := time.monotonic()) - start < limit_s:
        if unfinished := list(folder.glob("*-tmp*")):
            for path in unfinished:
                shutil.rmtree(path, ignore_errors=True)
            removed = time.monotonic()
        elif now - removed >= quiet_s:
            return
        else:
            time.sleep(0.02)


def cause(error: Exception) -> str:
    """The reason why a write failed, in a few words."""
    if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
        return "no space left on the disk"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__
