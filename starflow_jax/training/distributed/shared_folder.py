"""A folder that all processes of a run write together, whole or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from starflow_jax.core.files import replacing_folder
from starflow_jax.training.distributed.agreement import all_texts, wait_for_all


@contextmanager
def replacing_folder_together(path: Path) -> Iterator[Path]:
    """As `files.replacing_folder`, with one temporary folder for all processes, on a file system that they share.

    It is renamed when all have left. Where one fails it is gone, and those that still write there fail, too.
    """
    if jax.process_count() == 1:
        with replacing_folder(path) as folder:
            yield folder
        return
    temporary = path.with_name(f".{path.name}.{all_texts(uuid.uuid4().hex)[0]}")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        wait_for_all("made a folder")
        yield temporary
        wait_for_all("wrote a folder")
        if jax.process_index() == 0:
            os.replace(temporary, path)
        wait_for_all("renamed a folder")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
