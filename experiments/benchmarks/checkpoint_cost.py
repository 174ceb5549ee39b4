"""What saving a checkpoint in the background costs the updates that are made meanwhile.

    python experiments/benchmarks/checkpoint_cost.py --json cost.json
    python experiments/benchmarks/checkpoint_cost.py --config experiments/fashion_mnist.py --store s3://bucket/cost
    python experiments/benchmarks/checkpoint_cost.py --config experiments/digits.py:tiny --rounds 1 --updates 5  # test

Intervals alternate in one process: updates while nothing is saved, and updates from the return of `Checkpoints.save`
until the files are complete on the disk and in a store. "ratio" is the median time of an update in the second kind over
that in the first. `save` itself returns when the arrays are copied to the host; "blocked" is the time it takes, in
updates. "of the run" is the whole cost of a checkpoint, blocked time included, as a share of the time between two
(`train.checkpoint_every`). The load of the machine is recorded, since other programs disturb both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.config import load_config
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.store import Store, open_store
from starflow_jax.training import Checkpoints
from starflow_jax.training.checkpoints.initial_state import first_state
from starflow_jax.training.loop.goodput import TimeAccount
from starflow_jax.training.loop.profile import Profiler
from starflow_jax.training.loop.training_setup import Setup
from starflow_jax.training.loop.updates import Updates

EXPERIMENT = str(Path(__file__).parent.parent / "digits.py")
_WARM_UP = 5  # updates, the first of which compiles


def measure(config: ExperimentConfig, store: Store, folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Times updates of an experiment with and without a save in the background; seconds are medians.

    Args:
      store: that the folder is published to; folder: an empty one; count: updates of an interval without a save.
    """
    setup = Setup.from_config(config, None)
    state = first_state(config, None, setup.layout)
    updates = Updates(setup.on_devices(), state, setup.loader(0), Profiler(folder, None), TimeAccount())
    times: dict[str, list[float]] = {"quiet": [], "saving": []}
    blocked, in_flight, extra = [], [], []
    publication = Publication(store, folder)
    load = os.getloadavg()[0]
    with Checkpoints(folder, config, write=True) as checkpoints:
        for _ in range(_WARM_UP):
            _update(updates)
        for _ in range(rounds):
            quiet = [_update(updates) for _ in range(count)]
            start = time.perf_counter()
            checkpoints.save(updates.state, updates.loader.get_state())
            blocked.append(time.perf_counter() - start)
            checkpoint = folder / f"checkpoints/{updates.step}"
            saving = until_published(publication, checkpoint, checkpoints.check, lambda: _update(updates))
            in_flight.append(time.perf_counter() - start - blocked[-1])
            extra.append(blocked[-1] + sum(saving) - len(saving) * statistics.median(quiet))
            times["quiet"] += quiet
            times["saving"] += saving
        checkpoints.check(wait=True)
    updates.close()
    quiet_s, saving_s = (statistics.median(times[name]) for name in ("quiet", "saving"))
    return {
        "experiment": config.name,
        "platform": jax.default_backend(),
        "store": str(store.address),
        "rounds": rounds,
        "updates": {name: len(values) for name, values in times.items()},
        "checkpoint_bytes": sum(file.size for file in publication.files.values()),
        "update_seconds": quiet_s,
        "update_seconds_while_saving": saving_s,
        "ratio": saving_s / quiet_s,
        "blocked_seconds": statistics.median(blocked),
        "blocked_updates": statistics.median(blocked) / quiet_s,
        "in_flight_seconds": statistics.median(in_flight),
        "of_the_run": statistics.median(extra) / (config.train.checkpoint_every * quiet_s),
        "checkpoint_every": config.train.checkpoint_every,
        "load": [load, os.getloadavg()[0]],
        "cores": os.cpu_count(),
    }


def _update(updates: Updates) -> float:
    """Makes one update and waits for it; returns the seconds."""
    start = time.perf_counter()
    updates.advance()
    jax.block_until_ready(updates.state)
    return time.perf_counter() - start


def until_published(
    publication: Publication, checkpoint: Path, check: Callable[[], None], update: Callable[[], float]
) -> list[float]:
    """Makes updates until a checkpoint that is being saved is complete and published.

    Args:
      checkpoint: its folder; check: raises where the save has failed; update: makes one and returns its seconds.

    Returns:
      The seconds of all updates, at least one.
    """
    stopped = threading.Event()

    def publish() -> None:
        while not checkpoint.is_dir():
            if stopped.wait(0.02):
                return
        publication.publish()

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    try:
        seconds = [update()]
        while thread.is_alive():
            check()
            seconds.append(update())
    finally:
        stopped.set()
        thread.join()
    return seconds


def table(figures: dict[str, Any]) -> str:
    """The results as text."""
    names = ("update, ms", "while saving, ms", "ratio", "blocked, updates", "in flight, s", "of the run", "load")
    row = (
        f"{1e3 * figures['update_seconds']:.2f}",
        f"{1e3 * figures['update_seconds_while_saving']:.2f}",
        f"{figures['ratio']:.3f}",
        f"{figures['blocked_updates']:.2f}",
        f"{figures['in_flight_seconds']:.2f}",
        f"{figures['of_the_run']:.2%}",
        f"{max(figures['load']):.1f} on {figures['cores']} cores",
    )
    return text_table([names, row])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=EXPERIMENT, help="the experiment (default: digits.py)")
    parser.add_argument("--store", default="memory://checkpoint-cost/run", help="address that is published to")
    parser.add_argument("--rounds", type=int, default=8, help="intervals of each kind (default 8)")
    parser.add_argument("--updates", type=int, default=40, help="updates of an interval without a save (default 40)")
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    options = parser.parse_args(arguments)
    # One update a call, so that each has a time.
    config = load_config(options.config, ["train.steps_per_call=1", "train.keep=1", "train.steps=1000000"])
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            config, open_store(Address.parse(options.store)), Path(folder), options.rounds, options.updates
        )
    print(table(figures))
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
