"""Runs with given parameters, as `starflow sweep` finds them, sweeps of them, and the watcher that they report to."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from random_flows import CLASSES, random_flow

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun
from starflow_jax.flows.parameters import split
from starflow_jax.sweeps import make_plan, read_examples, read_results, run_sweep
from starflow_jax.training import Checkpoints, abstract_state

COUNT, DRAWS = 11, 3  # images of a sweep, and draws of each
TRAIN = TrainConfig(steps=4, batch_size=2, lr=1e-3, warmup=1, ema=0.0, keep=10)


def write_run(folder: Path, flow: FlowConfig, data: DataConfig, params_of_steps, **more) -> Path:
    """The folder of a run with these parameters at these steps."""
    config = ExperimentConfig(name=folder.name, flow=flow, data=data, train=TRAIN, **more)
    # Optimizer state that nobody reads: zeros, for which nothing is compiled.
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(config))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    with Checkpoints(folder, config, write=True) as checkpoints:
        for step, params in params_of_steps.items():
            checkpoints.save(state.replace(step=jnp.asarray(step, jnp.int32), params=params), {"next_index": step})
    return folder


def write_arrays(folder: Path, images: np.ndarray, labels=None) -> Path:
    """An npz data set whose splits are these images, uint8 [n, H, W, C]."""
    folder.mkdir(parents=True)
    labels = np.arange(len(images)) % 3 if labels is None else labels
    for split_name in ("train", "test"):
        np.savez(folder / f"{split_name}.npz", image=images.astype(np.uint8), label=labels)
    return folder


def params_of(flow):
    """Parameters of a flow as a checkpoint holds them."""
    return split(flow)[1]


class Heard:
    """A watcher that keeps what it hears, and may stop the sweep after so many batches."""

    def __init__(self, stop_after: int | None = None):
        self.batches, self.rows, self.failures, self.before = [], {}, {}, 0
        self._stop_after = stop_after

    def started(self, cell, rows):
        pass

    def advanced(self, cell, rows, seconds):
        self.batches.append((cell.id, rows))
        if len(self.batches) == self._stop_after:
            raise KeyboardInterrupt

    def done(self, cell, row, *, before):
        self.rows[cell.id] = row
        self.before += before

    def failed(self, cell, sentence):
        self.failures[cell.name] = sentence


def swept(config, out, **options):
    """What was heard of a sweep."""
    heard = Heard()
    run_sweep(make_plan(config), out, watcher=heard, **options)
    return heard


# What may differ between two computations of one cell.
TIMES = ("seconds", "tokens_per_second")


def without_times(row):
    return {name: value for name, value in row.items() if name not in TIMES}


def two_checkpoints(home: Path) -> Path:
    """Two checkpoints of a flow that reads classes, and images of 256 levels."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 1))
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", images)))
    write_run(home / "run", CLASSES, data, {step: params_of(random_flow(CLASSES, step)) for step in (2, 4)})
    return home


def config_of(home, **changes):
    data = (SweepData("inside"), SweepData("outside", count=7, transform="inverted", role="out"))
    values = {"noise": ("uniform", 0.1), "conditions": ("true", "dropped", "shuffled"), "draws": DRAWS}
    values |= {"runs": (SweepRun(str(home / "run")),), "data": data, "batch_size": 8}
    return SweepConfig("test", **{**values, **changes})


def missing_data(*names):
    """Data sets whose files do not exist."""
    return tuple(SweepData(name, source=SourceConfig(source="npz", path=name)) for name in names)


def examples(out):
    return {path.stem: read_examples(out, path.stem) for path in sorted((out / "examples").iterdir())}


def assert_identical(out, expected):
    """Bit for bit, but for the times."""
    found, theirs = ({row["cell"]: without_times(row) for row in read_results(folder)} for folder in (out, expected))
    assert found == theirs
    ours, others = examples(out), examples(expected)
    assert ours.keys() == others.keys()
    for cell, arrays in ours.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[cell][name])


def config_file(path, config):
    path.write_text(f"def get_config():\n    return {dataclasses.asdict(config)!r}\n")
    return str(path)


def runs_of(home, *runs):
    return tuple(SweepRun(str(home / "run"), **options) for options in runs)
