"""Reads one array of a NumPy file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starflow_jax.core.regular_files import open_file

ARRAY_SUFFIXES = (".npy", ".npz")


def read_array(path: Path, keys: Sequence[str] = ()) -> tuple[np.ndarray, int | None]:
    """The array of a .npy file, or the first of `keys` that a .npz file has; nothing in the file is executed.

    Returns:
      The array, and the number of levels of a pixel that a .npz file states, None where there is none.

    Raises:
      ValueError: the file cannot be read, is damaged, or has none of the arrays.
    """
    levels: int | None = None
    try:
        with open_file(path) as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                key = next((key for key in keys if key in loaded.files), None)
                if key is None:
                    words = " or ".join(f"`{key}`" for key in keys)
                    raise ValueError(f"it must contain {words}, got {', '.join(loaded.files) or 'nothing'}")
                levels = int(loaded["levels"]) if "levels" in loaded.files else None
                loaded = loaded[key]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise ValueError(f"{path} cannot be read: {error}") from error
    return loaded, levels
