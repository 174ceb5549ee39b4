"""Opens files that must be regular ones: a named pipe or a device is refused instead of waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from starflow_jax.core.storage.ranged_files import StoredFile


def open_regular(path: Path | StoredFile) -> BinaryIO:
    """Opens a regular file, or one in a store, for reading bytes.

    Raises:
      OSError: there is no such file, it cannot be read, or it is not a regular file.
    """
    if isinstance(path, StoredFile):
        return path.open()
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is not a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise
