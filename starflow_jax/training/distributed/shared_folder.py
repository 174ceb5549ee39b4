"""A folder that all processes of a run write together; it appears complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from starflow_jax.core.atomic_writing import replacing_folder
from starflow_jax.core.storage.local_moves import move_over
from starflow_jax.training.distributed.agreement import barrier, gather_texts


@contextmanager
def replacing_folder_together(path: Path) -> Iterator[Path]:
    """`core.atomic_writing.replacing_folder` for several processes that share a file system.

    All processes write into one temporary folder, which is renamed when all of them have left the `with` block. If one
    process fails the temporary folder is removed, and the processes that still write there fail too.
    """
    if jax.process_count() == 1:
        with replacing_folder(path) as folder:
            yield folder
        return
    temporary = path.with_name(f".{path.name}.{gather_texts(uuid.uuid4().hex)[0]}")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        barrier("made a folder")
        yield temporary
        barrier("wrote a folder")
        if jax.process_index() == 0:
            move_over(temporary, path)
        barrier("renamed a folder")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
