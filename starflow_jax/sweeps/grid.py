"""The cells of a sweep: the product of checkpoints, data, noise, conditions and compute types, in a fixed order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

from starflow_jax.core.choices import Dtype, choices
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.sweep_config import Condition, SweepConfig, SweepData
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.sharding.layout import BATCH, Layout
from starflow_jax.sharding.mesh import check_fit
from starflow_jax.sweeps.checkpoint_selection import Checkpoint, find_checkpoints
from starflow_jax.sweeps.content_hash import FileHashes, values_hash
from starflow_jax.sweeps.datasets import DataSet, open_data
from starflow_jax.training.step.frozen_autoencoder import Frozen

__all__ = ["Cell", "Noise", "Plan", "make_plan"]

# Part of every id: increment it when the computation changes, which makes all stored results obsolete.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Noise:
    """Noise that is added to the data.

    Attributes:
      kind: "uniform" dequantisation, or "gaussian".
      sigma: standard deviation of Gaussian noise, on pixels in [-1, 1] or on latents; 0 for uniform noise.
      level: the noise level that a noise-conditioned flow reads: sigma, and its lowest one for uniform noise; 0 for
        other flows.
    """

    kind: Literal["uniform", "gaussian"]
    sigma: float = 0.0
    level: float = 0.0

    def __str__(self) -> str:
        return "uniform" if self.kind == "uniform" else f"{self.sigma:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One result of a sweep: a likelihood, and everything that determines it.

    Attributes:
      checkpoint, data, noise: of the likelihood.
      condition: the condition of the flow; "none" for an unconditional flow.
      dtype: of the networks' computations; draws: samples of the noise for every example.
      seed: of the noise and of shuffled conditions.
    """

    checkpoint: Checkpoint
    data: DataSet
    noise: Noise
    condition: Condition | Literal["none"]
    dtype: Dtype
    draws: int
    seed: int

    @functools.cached_property
    def id(self) -> str:
        """Content hash of everything that determines the result."""
        return values_hash(
            {
                "version": _VERSION,
                "checkpoint": self.checkpoint.fingerprint,
                "data": self.data.fingerprint,
                "examples": len(self.data),
                "noise": [self.noise.kind, self.noise.sigma],
                "condition": self.condition,
                "dtype": self.dtype,
                "draws": self.draws,
                "seed": self.seed,
            }
        )

    @property
    def name(self) -> str:
        """A description for messages."""
        prefix = f"{self.checkpoint.run} step {self.checkpoint.step}, {self.data.name}, noise {self.noise}"
        condition = "" if self.condition == "none" else f", condition {self.condition}"
        return prefix + condition + ("" if self.dtype == "float32" else f", {self.dtype}")

    @property
    def rows(self) -> int:
        """Number of examples times draws; row r is example r // draws with draw r % draws of the noise."""
        return len(self.data) * self.draws

    @property
    def frames(self) -> int:
        """Number of frames with a likelihood given earlier frames; 0 for images and for flows that are not causal."""
        video = len(self.data.shape) == 4
        return self.data.shape[0] if video and is_frame_causal(self.checkpoint.config.flow) else 0

    @property
    def columns(self) -> int:
        """Number of values of a row: the prior term, the logdet of every block, the likelihood of every frame."""
        return 1 + self.checkpoint.config.flow.num_blocks + self.frames

    @property
    def flow_input(self) -> Condition:
        """The condition that is passed to `Conditions.rows`, also for an unconditional flow."""
        return "dropped" if self.condition == "none" else self.condition


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a sweep computes, checked before the computation begins.

    Attributes:
      config: of the sweep; named: every requested cell, grouped by checkpoint.
      cells: the cells to compute, without duplicates: of cells with equal ids the first.
      batch_size: rows at a time.
    """

    config: SweepConfig
    named: tuple[Cell, ...]
    cells: tuple[Cell, ...]
    batch_size: int

    @property
    def num_duplicates(self) -> int:
        """Number of cells that equal other cells and are not computed again."""
        return len(self.named) - len(self.cells)

    def by_checkpoint(self) -> Iterator[tuple[Checkpoint, list[Cell]]]:
        """Checkpoints, and the cells of each."""
        groups: dict[int, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(id(cell.checkpoint), []).append(cell)
        for cells in groups.values():
            yield cells[0].checkpoint, cells


def make_plan(config: SweepConfig, layout: Layout | None = None) -> Plan:
    """Opens runs and data, and lists the cells; reads no parameters.

    Args:
      layout: of the devices over which a batch is sharded; None for one device.

    Raises:
      ValueError: runs or data that are missing or incompatible.
    """
    file_hashes: FileHashes = {}
    runs = [find_checkpoints(run, file_hashes) for run in config.runs]
    names = [checkpoints[0].run for checkpoints in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    check(not repeated, f"runs must have names that differ (runs.name), got {', '.join(repeated)} again")
    opened: dict[str, DataSet] = {}
    encoders: dict[str, Frozen] = {}
    cells: list[Cell] = []
    for checkpoints in runs:
        for checkpoint in checkpoints:
            sets, errors = [], []
            for data_config in config.data:
                try:
                    sets.append(_data(opened, encoders, file_hashes, data_config, checkpoint.config, config))
                except ValueError as error:  # all of them are reported, so that they can be mended together
                    errors.append(error)
            if len(errors) == 1:
                raise errors[0]
            check(not errors, "; ".join(str(error).removesuffix(".") for error in errors))
            called = [data.name for data in sets]
            again = sorted({name for name in called if called.count(name) > 1})
            check(not again, f"data must have names that differ (data.name), got {', '.join(again)} again")
            cells += [cell for data in sets for cell in _cells(config, checkpoint, data)]
    named: dict[tuple[str, ...], Cell] = {}
    first: dict[str, Cell] = {}
    for cell in cells:
        # The noise "trained" may equal a level that is listed too; both then are one cell with one name.
        named.setdefault((cell.id, cell.name), cell)
        first.setdefault(cell.id, cell)
    unique = list(first.values())
    parts = 1 if layout is None else layout.size(BATCH)
    largest = min(config.batch_size, max(cell.rows for cell in unique))
    batch_size = parts * -(-largest // parts)
    for cell in unique:
        check_fit(layout, cell.checkpoint.config.flow, batch_size, 1, cell.data.shape, field="batch_size")
    return Plan(config, tuple(named.values()), tuple(unique), batch_size)


def _data(
    opened: dict[str, DataSet],
    encoders: dict[str, Frozen],
    file_hashes: FileHashes,
    data: SweepData,
    run: ExperimentConfig,
    config: SweepConfig,
) -> DataSet:
    """A data set as a run reads it, opened once for all checkpoints and all runs that read it in the same way."""
    flow = dataclasses.asdict(run.flow)
    key = values_hash({"data": to_json(data), "of": to_json(run.data), "flow": flow, "text": repr(run.text)})
    if key not in opened:
        opened[key] = open_data(data, run, config.conditions, encoders, file_hashes)
    return opened[key]


def _cells(config: SweepConfig, checkpoint: Checkpoint, data: DataSet) -> Iterator[Cell]:
    flow = checkpoint.config.flow
    reads = bool(flow.num_classes or flow.text_dim)
    dtypes: tuple[Dtype, ...] = ("float32",) if config.dtype == "float32" else choices(Dtype)
    for level in config.noise:
        noise = _noise(level, checkpoint.config)
        levels = flow.noise_levels
        if levels is not None:
            noise = dataclasses.replace(noise, level=levels[0] if noise.kind == "uniform" else noise.sigma)
            check(
                levels[0] <= noise.level <= levels[1],
                f"noise must be from {levels[0]:g} to {levels[1]:g}, the noise levels of run {checkpoint.run}, or "
                f"'uniform' or 'trained', got {noise.level:g}",
            )
        check(
            noise.kind == "gaussian" or not data.on_latents,
            f"noise 'uniform' needs pixels, and {data.name} of run {checkpoint.run} are latents; use 'trained' or a "
            "standard deviation",
        )
        for condition in data.conditions if reads else ("none",):
            for dtype in dtypes:
                yield Cell(checkpoint, data, noise, condition, dtype, config.draws, config.seed)  # type: ignore[arg-type]


def _noise(level: float | str, run: ExperimentConfig) -> Noise:
    if not isinstance(level, str):
        return Noise("gaussian", float(level))
    if level == "uniform" or run.data.noise == "uniform":
        return Noise("uniform")
    return Noise("gaussian", run.data.noise_std)
