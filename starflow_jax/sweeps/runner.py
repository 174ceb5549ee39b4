"""The loop of a sweep over cells and batches; every batch is flushed to disk before the next begins.

A sweep that was killed continues after the last complete batch. All processes compute, and each reads its share of
every batch; process 0 writes, and tells the others which rows are done.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import write_json
from starflow_jax.core.storage.addresses import refuse_address
from starflow_jax.core.storage.local_moves import locked
from starflow_jax.flows.parameters import Params
from starflow_jax.sharding.layout import Layout, spread
from starflow_jax.sweeps.checkpoint_selection import Checkpoint
from starflow_jax.sweeps.chunk_file import ChunkWriter, Computed, read_chunks
from starflow_jax.sweeps.datasets import Conditions
from starflow_jax.sweeps.density import Programs, Rows, Scaling, placed_rows, reduce_tokens
from starflow_jax.sweeps.grid import Cell, Plan
from starflow_jax.sweeps.results import (
    CELLS_FOLDER,
    EXAMPLES_FOLDER,
    FAILURES_FILE,
    PLAN_FILE,
    Results,
    cell_names,
    result_row,
    write_examples,
    write_plan,
)
from starflow_jax.training import load_run
from starflow_jax.training.distributed.agreement import everywhere, gather_texts, on_first_process
from starflow_jax.training.step.frozen_autoencoder import Frozen
from starflow_jax.training.step.frozen_text import FrozenText, load_text


class Watcher(Protocol):
    """Callbacks on the progress of a sweep; every process calls them at the same points."""

    def started(self, cell: Cell, rows: int) -> None:
        """The computation of a cell begins at a row."""

    def advanced(self, cell: Cell, rows: int, seconds: float) -> None:
        """A batch of a cell is on disk: `rows` rows are done, the last batch took `seconds`."""

    def done(self, cell: Cell, row: dict[str, Any], *, before: bool) -> None:
        """A cell is done; `before`: since an earlier call."""

    def failed(self, cell: Cell, sentence: str) -> None:
        """A cell failed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a sweep.

    Attributes:
      cells: number in the plan; done: with a result; computed: by this call; failures: messages by name of cell.
      rows, programs: computed and compiled by this call.
    """

    cells: int
    done: int
    computed: int
    failures: dict[str, str]
    rows: int
    programs: int


class _CellFailed(Exception):
    """A cell failed on all processes."""


def run_sweep(plan: Plan, out: Path | str, *, layout: Layout | None = None, watcher: Watcher) -> Outcome:
    """Computes the cells of a plan that have no result yet.

    Args:
      plan: of the sweep.
      out: a new or empty folder, or the folder of a sweep of any configuration, whose results of equal cells are used.
      layout: of the devices for which the plan was made.

    Raises:
      ValueError: a folder with other files or in use, or damaged files.
      OSError: results cannot be written.
    """
    refuse_address("out", out)
    out = Path(out)
    with _claimed(out, plan), Results(out, cell_names(plan)) as results:
        if jax.process_index() == 0:
            results.repair()
        done = set(_broadcast(sorted(results.done)))
        sweep = _Sweep(plan, out, layout, watcher, results, Programs())
        for checkpoint, cells in plan.by_checkpoint():
            sweep.score(checkpoint, cells, done)
        return sweep.outcome()


@dataclasses.dataclass
class _Sweep:
    """One call of `run_sweep`."""

    plan: Plan
    out: Path
    layout: Layout | None
    watcher: Watcher
    results: Results
    programs: Programs
    failures: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    # Frozen models of the last cell. The next cell often uses the same ones; memory may not suffice for two sets.
    encoder: tuple[Frozen, Frozen] | None = None
    text: tuple[ExperimentConfig, FrozenText | None] | None = None
    computed: int = 0
    done: int = 0
    rows: int = 0

    def score(self, checkpoint: Checkpoint, cells: list[Cell], done: set[str]) -> None:
        """Scores all cells of a checkpoint; its parameters are loaded only if a result is missing."""
        params: Params | None = None
        problem: Exception | None = None
        rows = {row["cell"]: row for row in self.results.rows}
        for cell in cells:
            if cell.id in done:
                self.done += 1
                self._remove_chunks(cell)
                self.watcher.done(cell, rows.get(cell.id, {"cell": cell.id}), before=True)
                continue
            if params is None and problem is None and not self._is_complete(cell):
                try:
                    params = load_run(checkpoint.workdir, ema=checkpoint.ema, layout=self.layout, step=checkpoint.step)[
                        2
                    ]
                except ValueError as error:  # raised by all processes
                    problem = error
                except OSError as error:
                    if jax.process_count() > 1:
                        raise
                    problem = error
            self._cell(cell, params, problem)

    def _cell(self, cell: Cell, params: Params | None, problem: Exception | None) -> None:
        try:
            if problem is not None and not self._is_complete(cell):
                raise _CellFailed(_message(problem)) from problem
            row = self._scored(cell, params)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            if jax.process_count() > 1 and not isinstance(error, _CellFailed):
                raise  # other processes did not fail and would wait for this one
            self._fail(cell, error)
            return
        self.computed += 1
        self.done += 1
        self.watcher.done(cell, row, before=False)

    def _scored(self, cell: Cell, params: Params | None) -> dict[str, Any]:
        """Computes the missing rows of a cell, writes its result, and returns it."""
        path = self.out / CELLS_FOLDER / f"{cell.id}.chunks"
        computed = read_chunks(path, cell.columns) if jax.process_index() == 0 else _no_rows(cell)
        first, size = _broadcast([computed.rows, computed.size])
        if first < cell.rows:
            assert params is not None  # loaded for incomplete cells
            self.watcher.started(cell, first)
            self._compute(cell, params, path, first, size)
            computed = read_chunks(path, cell.columns) if jax.process_index() == 0 else _no_rows(cell)
        row: dict[str, Any] = {"cell": cell.id}
        if jax.process_index() == 0:
            row = result_row(cell, computed)
            write_examples(self.out, cell, computed)
            self.results.add(row)
            self._remove_chunks(cell)
        return row

    def _compute(self, cell: Cell, params: Params, path: Path, first: int, size: int) -> None:
        """Computes rows from `first` on, and appends each batch to the file of the cell."""
        checkpoint, data = cell.checkpoint, cell.data
        flow = dataclasses.replace(checkpoint.config.flow, dtype=cell.dtype)
        try:
            encoder, conditions = self._encoder(cell), self._conditions(cell)
        except OSError as error:  # a frozen model cannot be read; other cells may not need it
            if jax.process_count() > 1:
                raise
            raise _CellFailed(_message(error)) from error
        scaling = spread(self.layout, Scaling.from_noise(cell.noise, 0 if data.on_latents else data.levels))
        key = spread(self.layout, jax.random.key(cell.seed))
        levels = data.levels if encoder is not None else 0
        with _writer(path, size) as append:
            for start in range(first, cell.rows, self.plan.batch_size):
                start_time = time.perf_counter()
                rows = self._batch(cell, conditions, start)
                reading = time.perf_counter() - start_time
                terms = self.programs(flow, self.layout, levels, params, encoder, key, scaling, rows)
                start_time = time.perf_counter()
                count = min(self.plan.batch_size, cell.rows - start)
                values = reduce_tokens(np.asarray(terms()), cell.frames)[:count]
                seconds = time.perf_counter() - start_time + reading
                append(start, values, seconds)
                self.rows += count
                self.watcher.advanced(cell, start + count, seconds)

    def _batch(self, cell: Cell, conditions: Conditions, start: int) -> Rows:
        """This process's share of the rows from `start` on; the last row is repeated to fill the batch."""
        row_indices = np.minimum(np.arange(start, start + self.plan.batch_size), cell.rows - 1)
        if self.layout is not None:
            parts, count = self.layout.share()
            row_indices = np.concatenate([np.split(row_indices, count)[part] for part in parts])
        indices, draws = np.divmod(row_indices, cell.draws)
        problem: Exception | None = None
        try:
            examples = {int(index): dict(cell.data.source[int(index)]) for index in np.unique(indices)}
            pixels = {index: cell.data.image(index, example) for index, example in examples.items()}
            image = np.stack([pixels[int(index)] for index in indices])
            cond = conditions.rows(cell.flow_input, indices, examples)
            rows = Rows(image, indices.astype(np.int32), draws.astype(np.int32), cond)
        except Exception as error:
            problem = error
        if not everywhere(problem is None):
            sentence = "its data could not be read by another process" if problem is None else _message(problem)
            raise _CellFailed(sentence) from problem
        return placed_rows(self.layout, rows)

    def _encoder(self, cell: Cell) -> Frozen | None:
        """The autoencoder that encodes pixels, on the devices."""
        frozen = cell.data.encoder
        if frozen is None:
            return None
        if self.encoder is None or self.encoder[0] is not frozen:
            self.encoder = None  # frees memory for the next one
            self.encoder = frozen, frozen.over(self.layout)
        return self.encoder[1]

    def _conditions(self, cell: Cell) -> Conditions:
        def text() -> FrozenText | None:
            config = cell.checkpoint.config
            if self.text is None or self.text[0] is not config:
                self.text = None
                frozen = load_text(config)
                self.text = config, None if frozen is None else frozen.over(None)
            return self.text[1]

        return Conditions(cell.data, cell.checkpoint.config, cell.seed, text)

    def _is_complete(self, cell: Cell) -> bool:
        """Whether all rows of a cell are computed, and only its result is missing."""
        rows = 0
        if jax.process_index() == 0:
            rows = read_chunks(self.out / CELLS_FOLDER / f"{cell.id}.chunks", cell.columns).rows
        return bool(_broadcast([rows])[0] >= cell.rows)

    def _remove_chunks(self, cell: Cell) -> None:
        if jax.process_index() == 0:
            (self.out / CELLS_FOLDER / f"{cell.id}.chunks").unlink(missing_ok=True)

    def _fail(self, cell: Cell, error: Exception) -> None:
        sentence = _message(error)
        trace = "".join(traceback.format_exception(error))
        self.failures[cell.id] = {"cell": cell.id, "name": cell.name, "sentence": sentence, "traceback": trace}
        self.watcher.failed(cell, sentence)
        self._write_failures()

    def _write_failures(self) -> None:
        if jax.process_index() == 0:
            write_json(self.out / FAILURES_FILE, {"failures": list(self.failures.values())})

    def outcome(self) -> Outcome:
        """The outcome of this call; failures of earlier calls are not listed."""
        self._write_failures()
        messages = {failure["name"]: failure["sentence"] for failure in self.failures.values()}
        return Outcome(len(self.plan.cells), self.done, self.computed, messages, self.rows, len(self.programs))


@contextmanager
def _claimed(out: Path, plan: Plan) -> Iterator[None]:
    """Makes `out` the folder of a sweep and locks it.

    Raises:
      ValueError: see `run_sweep`.
    """
    on_first_process(lambda: claim_folder(out), f"--out {out}")
    if jax.process_index() != 0:
        yield
        return
    with locked(out) as free:
        check_free(out, free)
        write_plan(out, plan)
        yield


def check_free(out: Path, free: bool) -> None:
    """Raises ValueError where another process holds the lock of the folder."""
    if not free:
        raise ValueError(f"{out} is in use by another sweep")


def claim_folder(out: Path) -> None:
    """Creates the folder of a sweep, or checks that it is one.

    Raises:
      ValueError: a folder that holds other files, or cannot be written.
    """
    try:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        for name in (CELLS_FOLDER, EXAMPLES_FOLDER):
            (out / name).mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error.strerror or error}") from error


def check_folder(out: Path) -> None:
    """Checks what `claim_folder` does and writes nothing; a folder that does not exist is free.

    Raises:
      ValueError: a file, or a folder that holds other files.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} must be a folder, and is a file")
    if out.exists() and any(out.iterdir()) and not (out / PLAN_FILE).is_file():
        raise ValueError(f"{out} must be an empty or a new folder, or that of a sweep, and contains other files")


@contextmanager
def _writer(path: Path, size: int) -> Iterator[Callable[[int, np.ndarray, float], None]]:
    """A function that appends a batch; it does nothing on processes other than process 0."""
    if jax.process_index() != 0:
        yield lambda first, values, seconds: None
        return
    with ChunkWriter(path, size) as writer:
        yield writer.append


def _no_rows(cell: Cell) -> Computed:
    return Computed(np.zeros((0, cell.columns)), 0.0, 0, 0, 0)


def _broadcast(values: list[Any]) -> list[Any]:
    """The values of process 0, on every process."""
    return json.loads(gather_texts(json.dumps(values))[0]) if jax.process_count() > 1 else values


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, ValueError | _CellFailed) and text else f"{type(error).__name__}: {text}"
