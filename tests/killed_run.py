"""A small training run as a separate process, for tests that kill it: `python killed_run.py WORKDIR SECONDS WORKERS`.

It appends a line to WORKDIR.seen for every batch the run reads: the number of the update, and the examples in it.
SECONDS are spent on every batch, so that there is time to strike. WORKERS processes read the data.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.data import ArraySource
from starflow_jax.training import train
from starflow_jax.training.loop import training_run
from starflow_jax.training.loop.training_setup import Setup

STEPS, BATCH = 40, 4
CONFIG = ExperimentConfig(
    name="killed",
    flow=FlowConfig(
        family="tarflow",
        channels=1,
        image_size=8,
        patch_size=4,
        width=16,
        num_blocks=2,
        layers_per_block=1,
        head_dim=16,
        num_classes=10,
        dropout=0.1,
    ),
    data=DataConfig(label_drop=0.1),
    train=TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        lr=1e-2,
        warmup=2,
        ema=0.9,
        grad_clip=1.0,
        steps_per_call=3,
        log_every=5,
        checkpoint_every=4,
        sample_every=1000,
    ),
)


def numbered_images(count: int = 30) -> ArraySource:
    """Images that encode their index in two of their pixels."""
    images = np.random.default_rng(0).integers(0, 17, (count, 8, 8, 1)).astype(np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 17)
    return ArraySource("numbered", images, np.arange(count, dtype=np.int32) % 10, levels=17, num_classes=10)


class Logged:
    """A loader that logs the batches read from it."""

    def __init__(self, loader, path: Path, seconds: float):
        self._loader, self._path, self._seconds = loader, path, seconds

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __next__(self):
        place = self._loader.get_state()["next_index"]
        batch = next(self._loader)
        pixels = batch["image"][:, 0, :2, 0].astype(int)
        with self._path.open("a") as file:
            file.write(f"{place} {' '.join(str(17 * high + low) for high, low in pixels)}\n")
        time.sleep(self._seconds)
        return batch


def main(workdir: Path, seconds: float, workers: int) -> int:
    """Trains to the end or to a signal; exit code 0."""
    training_run.plot_curves = lambda workdir: None  # matplotlib would take a sixth of the process's time
    build, seen = Setup.loader, workdir.with_name(f"{workdir.name}.seen")
    Setup.loader = lambda setup, step: Logged(build(setup, step), seen, seconds)
    data = dataclasses.replace(CONFIG.data, workers=workers)
    config = dataclasses.replace(CONFIG, data=data)
    result = train(config, workdir, source=numbered_images(), progress=False)
    print(dataclasses.asdict(result)["step"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
