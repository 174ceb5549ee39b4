"""Run as a program by every process of a run: trains a little while a fault is injected into one of them.

python tests/process_that_fails.py FOLDER COORDINATOR PROCESSES PROCESS FAULT VICTIM
"""

import errno
import os
import signal
import sys

import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from starflow_jax.cli.dispatch import main
from starflow_jax.data import Loader


def when_reading(batch, happens):
    """Calls `happens` when batch `batch` is read."""
    read = Loader.__next__

    def reading(self):
        if self.get_state()["next_index"] == batch:
            happens()
        return read(self)

    # Under the same name, by which the command recognises it.
    Loader.__next__ = reading


def unreadable():
    raise ValueError("data cannot be read: all was bad")


def broken():
    raise RuntimeError("no such colour")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def get_config():
    """The smallest run."""
    flow = {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 1}
    flow |= {"layers_per_block": 1, "head_dim": 16}
    train = {"steps": 8, "batch_size": 4, "steps_per_call": 1, "log_every": 2, "checkpoint_every": 2}
    train |= {"lr": 1e-2, "sample_every": 100}
    return ConfigDict({"name": "together", "flow": flow, "data": {}, "train": train})


OWN = []  # options of the victim
FAULTS = {
    "loader": lambda: when_reading(3, unreadable),
    "bug": lambda: when_reading(3, broken),
    "killed": lambda: when_reading(3, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "sigterm": lambda: when_reading(3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "disk": lambda: setattr(ocp.StandardCheckpointHandler, "async_save", full_disk),
    "data": lambda: OWN.extend(["--config.data.source=npz", "--config.data.path=gone"]),
    "none": lambda: None,
}

if __name__ == "__main__":
    folder, coordinator, processes, process, fault, victim, *overrides = sys.argv[1:]
    if process == victim:
        FAULTS[fault]()
    place = ["--coordinator", coordinator, "--processes", processes, "--process", process]
    sys.argv[1:] = ["train", "--config", __file__, "--workdir", f"{folder}/run", *overrides, *place, *OWN]
    sys.exit(main())
