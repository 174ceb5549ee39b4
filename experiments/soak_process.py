"""One process of the training that `experiments/soak.py` disturbs; it is not meant to be run by hand.

    python experiments/soak_process.py SEEN PAUSE FULL_AT train --config .../soak_process.py ...

It appends a line to SEEN for every batch that it reads, the number of the update and a checksum of the pixels; it
spends PAUSE seconds on every batch, and its disk is full from the save FULL_AT on (-1 for never). The rest are the
arguments of `starflow`.
"""

from __future__ import annotations

import errno
import runpy
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from starflow_jax.data import Loader


def get_config() -> ConfigDict:
    """A small flow on digits, with everything that a resumed run must restore: dropout, moments, a moving average."""
    flow = {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 2, "width": 32, "num_blocks": 2}
    flow |= {"layers_per_block": 1, "head_dim": 16, "num_classes": 10, "dropout": 0.1}
    train = {"steps": 100, "batch_size": 16, "lr": 2e-3, "warmup": 10, "ema": 0.99, "grad_clip": 1.0}
    train |= {"skip_after": None}  # the norm exceeds 1 in nearly every update: every update must change parameters
    train |= {"steps_per_call": 1, "log_every": 10, "checkpoint_every": 10, "sample_every": 1_000_000, "keep": 3}
    data = {"source": "digits", "noise": "uniform", "label_drop": 0.1}
    return ConfigDict({"name": "soak", "flow": flow, "data": data, "train": train})


def record_batches(path: Path, pause: float) -> None:
    """Records every batch that the process reads in `path`, and slows it down."""
    read = Loader.__next__

    def reading(self: Loader) -> Any:
        place = self.get_state()["next_index"]
        batch = read(self)
        line = f"{place} {zlib.crc32(np.ascontiguousarray(batch['image']).tobytes())}\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
        time.sleep(pause)
        return batch

    Loader.__next__ = reading  # type: ignore[method-assign]


def fill_disk(save: int) -> None:
    """Makes every save from number `save` on fail as on a full disk."""
    write = ocp.StandardCheckpointHandler.async_save
    count = 0

    async def writing(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count >= save:
            raise OSError(errno.ENOSPC, "No space left on device")
        return await write(self, *arguments, **options)

    ocp.StandardCheckpointHandler.async_save = writing  # type: ignore[method-assign]


if __name__ == "__main__":
    seen, pause, full_at, *rest = sys.argv[1:]
    record_batches(Path(seen), float(pause))
    if int(full_at) >= 0:
        fill_disk(int(full_at))
    sys.argv[1:] = rest
    runpy.run_module("starflow_jax", run_name="__main__")
