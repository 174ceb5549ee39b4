"""Text states of many captions on the host, each different caption encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

# Text states by the bytes of their ids, passed in and returned, so that the caller controls the cache.
Known = Mapping[bytes, np.ndarray]


def states_of(
    encode: Callable[[Int[np.ndarray, "rows L"]], Float[np.ndarray, "rows L D"]],
    ids: Int[np.ndarray, "B L"],
    known: Known | None = None,
    *,
    batch_size: int = 16,
) -> tuple[Float[np.ndarray, "B L D"], dict[bytes, Float[np.ndarray, "L D"]]]:
    """Text states of rows of ids; each different row that is not in `known` is encoded once, in batches of one size.

    Args:
      encode: ids int32 [batch_size, L] to states float32 [batch_size, L, D], such as a compiled `TextEncoder.encode`.
      ids: int32 [B, L], B at least 1.
      known: states returned by an earlier call, for example those of the empty caption.
      batch_size: rows of a batch of `encode`.

    Returns:
      States float32 [B, L, D], and all states known afterwards.
    """
    keys = [row.tobytes() for row in ids]
    states_by_key = dict(known or {})
    first_rows = {key: row for row, key in reversed(list(enumerate(keys)))}
    new = [row for row, key in enumerate(keys) if key not in states_by_key and first_rows[key] == row]
    for first in range(0, len(new), batch_size):
        rows = new[first : first + batch_size]
        batch = ids[np.resize(rows, batch_size)]  # padded with copies, so that one program is compiled
        for row, states in zip(rows, np.asarray(encode(batch)), strict=False):
            states_by_key[keys[row]] = states
    return np.stack([states_by_key[key] for key in keys]), states_by_key
