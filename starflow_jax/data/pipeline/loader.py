"""The iterator that training reads: batches in the order of the plan, read ahead by threads or processes.

Its whole state is the number of the next batch. What reads ahead is set up anew wherever reading begins, so a run goes
on with any number of threads, workers or hosts.
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
from starflow_jax.data.pipeline.batch_order import Rows
from starflow_jax.data.pipeline.draw import CAPTION, DrawBatch, Drawing, Drawn, gather
from starflow_jax.data.sources.mixture import Component, example_spec


class Peek(NamedTuple):
    """What the coming batch looks like.

    Attributes:
      component: number of the source it comes from.
      shapes: shape and dtype of each of its arrays on this process, by name, hashable; equal for batches that fit
        into one array.
    """

    component: int
    shapes: tuple[tuple[str, tuple[int, ...], str], ...]


class Loader:
    """Endless batches, `{"image": ..., "label": int32 [B], ...}`, that can be stopped and resumed exactly.

    Attributes:
      skipped: bad examples in the batches handed out so far, on this process.
    """

    def __init__(self, components: tuple[Component, ...], plan: Any, seed: int, threads: int, workers: int, ahead: int):
        self.skipped = Skipped()
        self._draw = DrawBatch(tuple(component.source for component in components), seed)
        self._plan = plan
        self._threads, self._workers, self._ahead = threads, workers, ahead
        self._next = 0
        self._reading: Generator[Drawing, None, None] | None = None
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
        drawing = next(self._reading)
        if drawing.failure:
            raise ValueError(drawing.failure)
        self._next += 1
        self.skipped.add(drawing.tried, drawing.bad)
        return drawing.batch

    def get_state(self) -> dict[str, int]:
        """JSON values from which `set_state` goes on."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on as if so many batches had been taken.

        Raises:
          ValueError: no state of a loader.
        """
        index = state.get("next_index") if isinstance(state, Mapping) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < sys.maxsize:
            raise ValueError(f"state must be {{'next_index': a whole number not below 0}}, got {state!r}")
        self.close()
        self._next = index

    def rows(self, ahead: int = 0) -> Rows:
        """Which examples the coming batch holds, or the one `ahead` of it; reads none of them."""
        return self._plan[self._next + ahead]

    def row(self, component: int, place: int, example: int) -> Drawn:
        """One row of `rows`, drawn as it will be."""
        return self._draw.row(component, place, example)

    def peek(self, ahead: int = 0) -> Peek:
        """What the coming batch looks like, or the one `ahead` of it.

        Reads nothing but, once, an example of a source that does not know its shapes.
        """
        rows = self.rows(ahead)
        if rows.component not in self._specs:
            spec = example_spec(self._draw.sources[rows.component])
            self._specs[rows.component] = tuple(
                (name, (len(rows.places), *shape), np.dtype(dtype).name)
                for name, (shape, dtype) in sorted(spec.items())
                if name != CAPTION
            )
        return Peek(rows.component, self._specs[rows.component])

    def close(self) -> None:
        """Ends what reads ahead. The loader stays usable: it begins again where it is."""
        if self._reading is not None:
            self._reading.close()
        self._reading = None

    def _start(self) -> Generator[Drawing, None, None]:
        if self._workers:
            return self._by_processes()
        return self._by_threads() if self._threads else self._by_hand()

    def _by_hand(self) -> Generator[Drawing, None, None]:
        for index in range(self._next, sys.maxsize):
            yield self._draw(self._plan[index])

    def _by_threads(self) -> Generator[Drawing, None, None]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        pending: deque[list[Future[Drawn]]] = deque()
        index = self._next
        try:
            while True:
                while len(pending) <= self._ahead:
                    component, places = self._plan[index]
                    pending.append([pool.submit(self._draw.row, component, *place) for place in places])
                    index += 1
                rows = pending.popleft()
                try:
                    drawing = gather([row.result() for row in rows])
                except ValueError as error:
                    drawing = Drawing({}, 0, (), str(error))
                yield drawing
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _by_processes(self) -> Generator[Drawing, None, None]:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # which Grain's processes insist on
            flags.FLAGS.mark_as_parsed()
        # Cut where reading begins: the state of Grain's own processes would depend on how many there are.
        batches = self._plan.slice(slice(self._next, None)).map(self._draw)
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._ahead)
        single = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        reading = iter(batches.to_iter_dataset(single).mp_prefetch(options))
        try:
            yield from reading
        finally:
            reading.close()
