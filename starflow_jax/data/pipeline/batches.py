"""Batches: an endless shuffled stream for training, one padded pass for evaluation.

Images leave here as integers. Dequantisation and noise are drawn in the training step from the step's own
key, so that what a step computes depends on its number and not on the loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.pipeline.batch_order import batch_plan
from starflow_jax.data.pipeline.draw import stacked
from starflow_jax.data.pipeline.loader import Loader
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.mixture import components_of


def train_loader(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    process: tuple[int | Sequence[int], int] = (0, 1),
    threads: int = 0,
    workers: int = 0,
    prefetch: int = 2,
) -> Loader:
    """Endless shuffled batches that can be stopped and resumed exactly.

    Every epoch is a fresh permutation drawn from `seed`; a batch may span two epochs, so all have one size
    and no example is left out. Batch k of all processes together is a function of the source, the seed and k
    alone, and process p of P is given its p-th P-th of the rows: numbers of processes, threads and workers
    change nothing that is read. The loader's state is `{"next_index": k}`.

    Args:
      source: the examples; of a `Mixture` every batch comes from one component.
      batch_size: examples in a batch, over all processes; a component may have its own.
      seed: seed of the permutations and of what is random in reading, 0 to 2**32 - 1.
      process: `(index, count)`: of `count` equal parts of the rows this process reads number `index`, or those of a
        sequence of numbers.
      threads: threads that read ahead, or
      workers: processes that do; 0 of both reads when asked.
      prefetch: batches read ahead by the threads, or by each worker.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B]}`, and what else the source gives, stacked.

    Raises:
      ValueError: a number out of range, or a batch that cannot be shared out evenly.
    """
    index, count = process
    parts = (index,) if isinstance(index, int) else tuple(index)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to 2**32 - 1, got {seed}.")
    if not parts or not all(0 <= part < count for part in parts):
        raise ValueError(f"process must be (index, count) with 0 <= index < count, got {process}.")
    if threads < 0 or workers < 0 or prefetch < 1:
        raise ValueError(
            "threads and workers must not be negative and prefetch at least 1, "
            f"got {threads}, {workers} and {prefetch}."
        )
    check(not (threads and workers), f"threads or workers must be 0, got threads={threads} and workers={workers}")
    components = tuple(component for component in components_of(source) if component.weight > 0)
    check(len(components) > 0, f"{source.name} must have a source of a weight above 0, got none")
    sizes = [component.batch_size or batch_size for component in components]
    for component, size in zip(components, sizes, strict=True):
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}.")
        check(size % count == 0, f"batch_size must be a multiple of the {count} processes, got {size}")
        check(len(component.source) > 0, f"{component.source.name} must hold an example, got none")
    lengths = [len(component.source) for component in components]
    plan = batch_plan(lengths, [component.weight for component in components], sizes, seed, (parts, count))
    return Loader(components, plan, seed, threads, workers, prefetch)


def eval_batches(
    source: Source, batch_size: int, *, process: tuple[int, int] = (0, 1), skipped: Skipped | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example, in order, in batches of one size.

    The last batch is filled up with copies of one of its examples, so a jitted step compiles once; `valid`
    says which rows count. Components of a mixture follow one another, each in batches of its own shape. Every
    process gives equally many batches, and every example counts on exactly one.

    Args:
      source: the examples.
      batch_size: rows in a batch, over all processes.
      process: `(index, count)`: rows `index * B / count` to `(index + 1) * B / count` are this process's.
      skipped: where bad examples are counted; their rows are filled up too.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B], "valid": bool [B]}`, and what else the
      source gives, stacked.

    Raises:
      ValueError: batch_size below 1 or no multiple of the processes; most examples bad.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    index, count = process
    if not 0 <= index < count:
        raise ValueError(f"process must be (index, count) with 0 <= index < count, got {process}.")
    check(batch_size % count == 0, f"batch_size must be a multiple of the {count} processes, got {batch_size}")
    own = range(index * batch_size // count, (index + 1) * batch_size // count)
    report = Skipped() if skipped is None else skipped
    return _padded_batches(source, batch_size, own, report)


def _padded_batches(source: Source, batch_size: int, own: range, report: Skipped) -> Iterator[dict[str, np.ndarray]]:
    for component in components_of(source):
        filling = None
        for start in range(0, len(component.source), batch_size):
            examples = [_usable(component.source, start + row, report) for row in own]
            valid = np.asarray([example is not None for example in examples])
            filling = next((example for example in examples if example is not None), filling)
            if filling is None:
                filling = _first_usable(component.source, report)
            yield {**stacked([example or filling for example in examples]), "valid": valid}


def _usable(source: Source, index: int, report: Skipped) -> dict[str, np.ndarray] | None:
    """An example, None beyond the last one or where it is bad."""
    if index >= len(source):
        return None
    try:
        example = source[index]
    except BadExample as error:
        report.add(1, [(error.name, error.reason)])
        return None
    report.add(1, [])
    return example


def _first_usable(source: Source, report: Skipped) -> dict[str, np.ndarray]:
    found = (_usable(source, index, Skipped()) for index in range(len(source)))
    example = next((example for example in found if example is not None), None)
    if example is None:
        raise ValueError(f"{source.name} holds no example that can be read, such as {next(iter(report.reasons), '?')}")
    return example
