"""Text states of many captions on the host: each caption that repeats is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

# States of captions by their ids' bytes: a value, handed in and back, so that what is kept is the caller's choice.
Known = Mapping[bytes, np.ndarray]


def states_of(
    encode: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, known: Known | None = None, *, batch_size: int = 16
) -> tuple[np.ndarray, dict[bytes, np.ndarray]]:
    """Text states of rows of ids, each different row that is not known encoded once, in batches of one size.

    Args:
      encode: ids int32 [batch_size, L] to states float32 [batch_size, L, D], such as a compiled `TextEncoder.encode`.
      ids: int32 [B, L], B at least 1.
      known: states that an earlier call returned, for example those of the empty caption.

    Returns:
      States float32 [B, L, D], and all that are known now.
    """
    keys = [row.tobytes() for row in ids]
    found = dict(known or {})
    new = [place for place, key in enumerate(keys) if key not in found and keys.index(key) == place]
    for first in range(0, len(new), batch_size):
        places = new[first : first + batch_size]
        rows = ids[np.resize(places, batch_size)]  # filled up with copies, so that one program runs
        for place, states in zip(places, np.asarray(encode(rows)), strict=False):
            found[keys[place]] = states
    return np.stack([found[key] for key in keys]), found
