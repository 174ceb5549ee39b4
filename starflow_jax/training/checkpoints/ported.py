"""Converts named tensors of the PyTorch originals to runs and back, with at most one layer in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from starflow_jax.core.atomic_writing import replacing_folder, write_text
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.experiment_config import ExperimentConfig, with_quantise
from starflow_jax.flows import Flow
from starflow_jax.flows.parameters import abstract, split
from starflow_jax.porting.fit import not_finite
from starflow_jax.porting.name_table import NameTable
from starflow_jax.porting.renaming import FileTensor, written_as
from starflow_jax.porting.tensor_names import Entry, entries, flatten, holds_scales, unflatten
from starflow_jax.sharding.layout import Layout, located
from starflow_jax.tensor_formats.tensor_writing import write_shards, write_tensors
from starflow_jax.tensor_formats.tensors import LazyTensor
from starflow_jax.training.checkpoints.finished_run import ORIGIN_FILE, check_new
from starflow_jax.training.checkpoints.quantised_streams import quantised_streams
from starflow_jax.training.checkpoints.stored_run import StoredRun, stored_run
from starflow_jax.training.checkpoints.streamed import Streamed, write_params_checkpoint
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, CONFIG_FILE


def write_run(
    workdir: Path,
    config: ExperimentConfig,
    tensors: Mapping[str, LazyTensor],
    usable: set[str],
    layout: Layout | None = None,
    origin: str | None = None,
    step: int = 0,
) -> None:
    """Writes the folder of a run that holds these tensors, as its one checkpoint; it appears complete or not at all.

    Args:
      workdir: new or empty.
      config: of the run; float32 tensors are quantised while they are written, where its flow is.
      tensors: by the names of the original; usable: names of those that fit. Parameters, or layers of them, without a
        usable tensor get their initial values.
      layout: of devices; the file is chunked by the shards that they will read.
      origin: where the tensors come from, which `ORIGIN_FILE` records; None to record nothing.
      step: of the training that the checkpoint is of.

    Raises:
      ValueError: a folder that is not empty, or a tensor with values that are not finite.
      OSError: a folder that cannot be written.
    """
    workdir = workdir.resolve()
    check_new(workdir)
    # The flow whose tensors are given.
    whole = config
    if not holds_scales(tensors):
        whole = with_quantise(config, None)
    _, expected = abstract(whole.flow)
    entries_by_path: dict[str, list[Entry]] = {}
    for entry in entries(expected, additions=True):  # a caller has refused what the file cannot have
        entries_by_path.setdefault(entry.path, []).append(entry)
    missing = {path for path, parts in entries_by_path.items() if any(entry.name not in usable for entry in parts)}
    initial = _initial(whole, missing)
    flat = flatten(located(layout, expected))

    def streamed(path: str) -> Streamed:
        leaf, parts = flat[path], entries_by_path[path]

        def pieces() -> Iterator[tuple[int | None, np.ndarray]]:
            for entry in parts:
                if entry.name in usable:
                    yield entry.layer, _read(entry, tensors[entry.name])
                else:
                    yield entry.layer, np.asarray(initial[path] if entry.layer is None else initial[path][entry.layer])

        shard = tuple(leaf.shape) if layout is None else tuple(leaf.sharding.shard_shape(leaf.shape))
        chunk = shard if parts[0].layer is None else (1, *shard[1:])
        return Streamed(tuple(leaf.shape), np.dtype(leaf.dtype), chunk, pieces)

    streams = {path: streamed(path) for path in entries_by_path}
    if whole != config:
        streams = quantised_streams(config.flow, streams)
    write_streams(workdir, config, streams, step, origin)


def write_streams(
    workdir: Path,
    config: ExperimentConfig,
    streams: Mapping[str, Streamed],
    step: int,
    origin: str | None = None,
    complete: Callable[[], None] = lambda: None,
) -> None:
    """Writes the folder of a run with one checkpoint of parameters; it appears complete or not at all.

    Args:
      workdir: new or empty.
      config: of the run.
      streams: all parameters of its flow by dotted path.
      step: of the training; origin: as for `write_run`.
      complete: is called once everything has been read, and may raise.

    Raises:
      ValueError, OSError: from reading the parameters, from `complete` or from writing.
    """
    with replacing_folder(workdir.resolve()) as temporary:
        (temporary / CHECKPOINT_FOLDER).mkdir()
        write_params_checkpoint(temporary / CHECKPOINT_FOLDER / str(step), config, unflatten(streams), step)
        complete()
        write_text(temporary / CONFIG_FILE, to_json(config))
        if origin is not None:
            write_text(temporary / ORIGIN_FILE, json.dumps({"from": origin}, indent=2) + "\n")


def _read(entry: Entry, tensor: LazyTensor) -> np.ndarray:
    """The part of a parameter that a tensor holds, checked to be finite."""
    value = tensor.read()
    if bad := not_finite(value):
        raise ValueError(f"tensor {entry.name} contains {bad} of {value.size} values that are infinite or NaN")
    return entry.from_torch(value.astype(entry.dtype, copy=False))


def _initial(config: ExperimentConfig, paths: set[str]) -> dict[str, np.ndarray]:
    """The initial values of the parameters at `paths`; others are not computed."""
    if not paths:
        return {}

    def build(seed: jax.Array) -> dict[str, jax.Array]:
        flat = flatten(split(Flow(config.flow, jax.random.split(seed)[0]))[1])
        return {path: flat[path] for path in sorted(paths)}

    return jax.device_get(jax.jit(build)(jax.random.key(config.seed)))


def write_torch_file(
    path: Path,
    workdir: Path,
    config: ExperimentConfig,
    step: int | None,
    *,
    ema: bool,
    table: NameTable | None = None,
) -> tuple[int, int]:
    """Writes the parameters of a run as tensors of the original, for `torch.load` or safetensors.

    Args:
      path: the file; step: None for the newest; ema: whether to use the moving average if the checkpoint has one.
      table: names in the file of another implementation, which may have flows that the originals do not have.

    Returns:
      The step, and the number of tensors that the table names.

    Raises:
      ValueError: no such checkpoint, or one that is damaged; see `renaming.written_as`.
      OSError: the file cannot be written.
    """

    def write(specs: Sequence[FileTensor], values: Iterator[np.ndarray]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, specs, values)

    return _written(workdir, config, step, ema, write, table)


def write_torch_shards(
    folder: Path, workdir: Path, config: ExperimentConfig, step: int | None, *, ema: bool, shard_bytes: int
) -> int:
    """The same into files `model*.safetensors` of a folder (`tensor_writing.write_shards`); returns the step."""

    def write(specs: Sequence[FileTensor], values: Iterator[np.ndarray]) -> None:
        write_shards(folder, specs, values, shard_bytes)

    return _written(workdir, config, step, ema, write)[0]


def _written(
    workdir: Path,
    config: ExperimentConfig,
    step: int | None,
    ema: bool,
    write: Callable[[Sequence[FileTensor], Iterator[np.ndarray]], None],
    table: NameTable | None = None,
) -> tuple[int, int]:
    """Calls `write` with the tensors of one checkpoint; returns its step, and the number of those in the table."""
    file_entries = entries(abstract(config.flow)[1], additions=table is not None)
    written = written_as(table, file_entries)
    run = stored_run(workdir, config, step, ema=ema)
    with run.named():
        values = _tensors(run, file_entries)
        pieces = (piece for one in written for piece in one.pieces(next(values)))
        write([part for one in written for part in one.parts], pieces)
    return run.step, sum(one.named for one in written)


def _tensors(run: StoredRun, file_entries: Sequence[Entry]) -> Iterator[np.ndarray]:
    """The tensors of all entries in order; the checksum is verified before the last one."""
    pieces: Iterator[tuple[int | None, np.ndarray]] = iter(())
    last = len(file_entries) - 1
    for index, entry in enumerate(file_entries):
        if not entry.layer:  # the first part of a parameter
            pieces = run.streams[entry.path].pieces()
        _, piece = next(pieces)
        if index == last:
            run.check()
        yield entry.to_torch(piece)
