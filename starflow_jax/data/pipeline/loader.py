"""The iterator of training batches, read ahead by threads or processes.

Its state is the index of the next batch. Threads and processes are started when reading begins or resumes, so a run
resumes with any number of threads, workers or hosts.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.pipeline.batch_assembly import AssembledBatch, BatchAssembler, Row, gather
from starflow_jax.data.pipeline.batch_order import Rows
from starflow_jax.data.sources.base import CAPTION
from starflow_jax.data.sources.mixture import Component, example_spec


class Peek(NamedTuple):
    """The shapes of a coming batch.

    Attributes:
      component: index of the source that it comes from.
      shapes: (name, shape, dtype) of each of its arrays on this process; equal for batches that can be stacked.
    """

    component: int
    shapes: tuple[tuple[str, tuple[int, ...], str], ...]


class Loader:
    """Infinite batches, `{"image": ..., "label": int32 [B], ...}`, that can be stopped and resumed exactly.

    Attributes:
      skipped: counts of unreadable examples in the batches so far, on this process.
    """

    def __init__(self, components: tuple[Component, ...], plan: Any, seed: int, threads: int, workers: int, ahead: int):
        self.skipped = Skipped()
        self._assemble = BatchAssembler(tuple(component.source for component in components), seed)
        self._plan = plan
        self._threads, self._workers, self._ahead = threads, workers, ahead
        self._next = 0
        self._reading: Generator[AssembledBatch, None, None] | None = None
        self._specs: dict[int, tuple[tuple[str, tuple[int, ...], str], ...]] = {}

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch.

        Raises:
          ValueError: most of the examples cannot be read.
        """
        if self._reading is None:
            self._reading = self._start()
        assembled = next(self._reading)
        if assembled.failure:
            raise ValueError(assembled.failure)
        self._next += 1
        self.skipped.add(assembled.tried, assembled.bad)
        return assembled.batch

    def get_state(self) -> dict[str, int]:
        """The state as JSON values, for `set_state`."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues after the batches of a saved state.

        Raises:
          ValueError: `state` is not the state of a loader.
        """
        index = state.get("next_index") if isinstance(state, Mapping) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < sys.maxsize:
            raise ValueError(f"state must be {{'next_index': an integer >= 0}}, got {state!r}")
        self.close()
        self._next = index

    def rows(self, ahead: int = 0) -> Rows:
        """The examples of the next batch, or of the one `ahead` batches later, without reading them."""
        return self._plan[self._next + ahead]

    def row(self, component: int, position: int, example: int) -> Row:
        """Reads one row of `rows`."""
        return self._assemble.row(component, position, example)

    def peek(self, ahead: int = 0) -> Peek:
        """The shapes of the next batch, or of the one `ahead` batches later.

        Reads one example, once, of a source without `spec()`.
        """
        rows = self.rows(ahead)
        if rows.component not in self._specs:
            spec = example_spec(self._assemble.sources[rows.component])
            self._specs[rows.component] = tuple(
                (name, (len(rows.examples), *shape), np.dtype(dtype).name)
                for name, (shape, dtype) in sorted(spec.items())
                if name != CAPTION
            )
        return Peek(rows.component, self._specs[rows.component])

    def close(self) -> None:
        """Stops threads and processes. The loader stays usable, and restarts them when reading resumes."""
        if self._reading is not None:
            self._reading.close()
        self._reading = None

    def _start(self) -> Generator[AssembledBatch, None, None]:
        if self._workers:
            return self._by_processes()
        return self._by_threads() if self._threads else self._sequential()

    def _sequential(self) -> Generator[AssembledBatch, None, None]:
        for index in range(self._next, sys.maxsize):
            yield self._assemble(self._plan[index])

    def _by_threads(self) -> Generator[AssembledBatch, None, None]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        pending: deque[list[Future[Row]]] = deque()
        index = self._next
        try:
            while True:
                while len(pending) <= self._ahead:
                    component, examples = self._plan[index]
                    pending.append([pool.submit(self._assemble.row, component, *example) for example in examples])
                    index += 1
                rows = pending.popleft()
                try:
                    assembled = gather([row.result() for row in rows])
                except ValueError as error:
                    assembled = AssembledBatch({}, 0, (), str(error))
                yield assembled
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _by_processes(self) -> Generator[AssembledBatch, None, None]:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain requires it for its processes
            flags.FLAGS.mark_as_parsed()
        # Sliced where reading begins, because the state of Grain itself depends on the number of processes.
        batches = self._plan.slice(slice(self._next, None)).map(self._assemble)
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._ahead)
        single = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        reading = iter(batches.to_iter_dataset(single).mp_prefetch(options))
        try:
            yield from reading
        finally:
            reading.close()
