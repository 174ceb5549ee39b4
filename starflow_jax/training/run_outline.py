"""What a training would read, build and write, without a folder, a parameter or an update being made."""

from __future__ import annotations

import math
import statistics
from typing import Any

import jax

from starflow_jax.core.amounts import size_text, time_text
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.outline import Outline
from starflow_jax.costs.local_chip import local_peak
from starflow_jax.data import Source
from starflow_jax.data.pipeline.fingerprint import fingerprint
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.flows.parameters import abstract, count
from starflow_jax.training.checkpoints.initial_state import check_source, check_start
from starflow_jax.training.checkpoints.inventory import checkpoint_entries
from starflow_jax.training.checkpoints.manager import abstract_state
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, CSV_FILE, check_workdir, with_recorded
from starflow_jax.training.loop.metrics import read_metrics
from starflow_jax.training.loop.train_request import TrainRequest
from starflow_jax.training.loop.training_setup import Setup
from starflow_jax.training.step.frozen_autoencoder import open_with_encoder

_PARTS_OF_SAVES = ("params", "ema", "opt_state")


def run_outline(request: TrainRequest) -> Outline:
    """The outline of the training that `train` would do for this request.

    Everything that `train` refuses before its first update is refused, except what only reading the arrays of a
    checkpoint shows. One device group is described: that of this process.

    Raises:
      ValueError: see `train`.
    """
    setup = Setup.from_config(with_recorded(request.config, request.workdir), request.source)
    config, workdir = setup.config, request.workdir
    resumes = (workdir / CHECKPOINT_FOLDER).is_dir()
    if not resumes:
        check_start(config)
        if request.init_from is not None:
            check_source(config, request.init_from)
    check_workdir(workdir, config, fingerprint(setup.source))
    step = _newest_step(request, config)
    sizes = _sizes(setup)
    left = max(config.train.steps - (step or 0), 0)
    seconds, basis = _seconds(request, config, left, sizes["flops_an_update"])
    figures = {
        "name": config.name,
        "workdir": str(workdir),
        "step": step,
        "steps": config.train.steps,
        "updates_left": left,
        "batch_size": config.train.batch_size,
        "examples": len(setup.source),
        "devices": jax.device_count(),
        "seconds_left": seconds,
        "seconds_by": basis,
        **sizes,
    }
    return Outline(
        tuple(_read(request, setup, step)),
        tuple(_built(setup, figures)),
        tuple(_written(request, config, figures)),
        figures,
    )


def _newest_step(request: TrainRequest, config: ExperimentConfig) -> int | None:
    """The update that the run is resumed from; None for a new run.

    Raises:
      ValueError: the newest checkpoint, or with "latest-good" every one, is not complete.
    """
    entries = [entry for entry in checkpoint_entries(request.workdir, config) if entry.step is not None]
    good = [entry.step for entry in entries if entry.problem is None]
    if entries and (not good or (request.resume == "latest" and entries[-1].problem is not None)):
        newest = entries[-1]
        raise ValueError(f"the newest checkpoint of {request.workdir}, {newest.name}, {newest.problem}")
    return good[-1] if good else None


def _read(request: TrainRequest, setup: Setup, step: int | None) -> list[tuple[str, str]]:
    config = setup.config
    rows = [(f"training data: {name}", text) for name, text in described(setup.source)]
    if config.train.evaluate_every:
        test, _ = open_with_encoder(config, "test")
        rows.append(("held-out data", f"the first {min(config.evaluate.held_out, len(test)):,} of {len(test):,}"))
    for name, path in (("autoencoder", config.data.autoencoder), ("text encoder", config.data.text_encoder)):
        if path is not None:
            rows.append((name, str(path)))
    if step is not None:
        rows.append(("checkpoint", f"of update {step:,}; the run is resumed there"))
    elif request.init_from is not None:
        rows.append(("initial parameters", str(request.init_from)))
    elif config.train.language_model is not None:
        rows.append(("initial parameters", f"deep block of {config.train.language_model}"))
    else:
        rows.append(("checkpoint", f"none; a new run, initialised from seed {config.seed}"))
    return rows


def described(source: Source) -> list[tuple[str, str]]:
    """Names of the components of a source, with the number and the shape of their examples."""
    rows = []
    for component in components_of(source):
        shape = "x".join(map(str, example_spec(component.source)["image"][0]))
        rows.append((component.source.name, f"{len(component.source):,} of {shape}"))
    return rows


def _sizes(setup: Setup) -> dict[str, Any]:
    """Numbers of parameters, bytes and FLOPs."""
    config = setup.config
    state = abstract_state(config, setup.layout)
    kept = [getattr(state, name) for name in _PARTS_OF_SAVES]
    on_device = [_shard_bytes(leaf) for leaf in jax.tree.leaves(state)]
    main = max(components_of(setup.source), key=lambda component: component.weight).source
    pixels = (config.train.batch_size, *example_spec(main)["image"][0])
    return {
        "parameters": count(abstract(config.flow)[1]),
        "state_bytes_a_device": sum(on_device),
        "checkpoint_bytes": sum(_bytes(leaf) for leaf in jax.tree.leaves(kept)),
        "flops_an_update": setup.flops(pixels),
    }


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _shard_bytes(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _seconds(request: TrainRequest, config: ExperimentConfig, left: int, flops: float) -> tuple[float | None, str]:
    """Seconds for `left` updates of so many FLOPs, and what they are derived from."""
    rows = read_metrics(request.workdir / CSV_FILE)
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second", 0.0) > 0]
    if rates:
        return left * config.train.batch_size / statistics.median(rates), "the run's own speed so far"
    peak = local_peak(jax.devices()) if request.peak is None else request.peak
    if peak is None:
        return None, "not known for these devices: the first lines of a run tell"
    return left * flops / peak, "at the published peak of the devices, a lower bound"


def _built(setup: Setup, figures: dict[str, Any]) -> list[tuple[str, str]]:
    config, layout = setup.config, setup.layout
    mesh = "one device" if layout is None else ", ".join(f"{name} {size}" for name, size in layout.mesh.shape.items())
    kind = jax.devices()[0].device_kind
    seconds = figures["seconds_left"]
    time = figures["seconds_by"] if seconds is None else f"{time_text(seconds)} ({figures['seconds_by']})"
    return [
        ("parameters", f"{figures['parameters']:,}"),
        ("devices", f"{figures['devices']} x {kind}: {mesh}"),
        ("parameters, moments, average on a device", size_text(figures["state_bytes_a_device"])),
        (
            "updates",
            f"{figures['updates_left']:,} of {config.train.steps:,}, {config.train.batch_size:,} examples each",
        ),
        ("model FLOPs of an update", f"{figures['flops_an_update']:.3g}"),
        ("time for them", time),
    ]


def _written(request: TrainRequest, config: ExperimentConfig, figures: dict[str, Any]) -> list[tuple[str, str]]:
    train, size = config.train, figures["checkpoint_bytes"]
    most = min(train.keep + train.keep_best, -(-train.steps // train.checkpoint_every))
    disk = size_text((most + 1) * size)
    rows = [
        ("folder", figures["workdir"]),
        ("checkpoints", f"every {train.checkpoint_every:,} updates, about {size_text(size)} each"),
        ("checkpoints on disk", f"{most} at most and one that is being written: about {disk}"),
        ("metrics.csv, events", f"{-(-train.steps // train.log_every):,} rows, one every {train.log_every:,} updates"),
    ]
    if request.callbacks:
        rows.append(("samples", f"every {train.sample_every:,} updates"))
    return rows
