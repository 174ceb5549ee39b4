"""How the training of the run is going, read from its folder whenever something there has changed."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

from starflow_jax.reports.run_report import progress_parts
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, is_in_use

_SECONDS = 1.0
Stamp = tuple[tuple[str, int, int], ...]


class TrainingProgress:
    """The page of one run, which is made once for all visitors.

    Attributes:
      workdir: the folder of the run.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self._lock = threading.Lock()
        self._made: tuple[Stamp, str] | None = None
        self._seen: tuple[float, Stamp] | None = None

    def changed(self, seen: str | None) -> tuple[str, str] | None:
        """The state, curves, samples over time, goodput and checkpoints as HTML, and what names this version of them.

        The server keeps nothing of a visitor: the browser says which version it shows.

        Args:
          seen: the version that a visitor has; any other text, or None, for none.

        Returns:
          None where that is the newest version.

        Raises:
          ValueError: the configuration in the folder is damaged.
        """
        stamp = self.stamp()
        version = hashlib.sha256(repr(stamp).encode()).hexdigest()[:32]
        if version == seen:
            return None
        with self._lock:
            if self._made is None or self._made[0] != stamp:
                self._made = (stamp, progress_parts(self.workdir))
            return self._made[1], version

    def stamp(self) -> Stamp:
        """What changes whenever the page does: the files of the folder, its checkpoints, and whether it is in use.

        The folder is looked at once a second at most, for all visitors, since a training that begins at that moment
        would find it locked.
        """
        now = time.monotonic()
        with self._lock:
            if self._seen is None or now - self._seen[0] >= _SECONDS:
                self._seen = (now, _stamp(self.workdir))
            return self._seen[1]


def _stamp(workdir: Path) -> Stamp:
    files = []
    for folder in (workdir, workdir / CHECKPOINT_FOLDER):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            try:
                status = path.stat()
            except OSError:  # it was renamed meanwhile
                continue
            files.append((path.name, status.st_mtime_ns, status.st_size))
    return (*sorted(files), ("in use", int(is_in_use(workdir)), 0))
