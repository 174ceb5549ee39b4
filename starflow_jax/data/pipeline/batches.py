"""Batches: an infinite shuffled stream for training, one padded pass for evaluation.

Images are integers. Dequantisation and noise are sampled in the training step from the key of the step, so that its
result depends on the index of the step and not on the loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.pipeline.batch_assembly import stacked
from starflow_jax.data.pipeline.batch_order import batch_plan
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
    """Infinite shuffled batches that can be stopped and resumed exactly.

    Every epoch is a new permutation from `seed`; a batch may span two epochs, so that all have one size and no example
    is left out. Batch k of all processes together is a function of the source, the seed and k. Process p of P reads
    the p-th of P equal parts of its rows: the numbers of processes, threads and workers do not change the data. The
    state of the loader is `{"next_index": k}`.

    Args:
      source: the examples; every batch of a `Mixture` comes from one component.
      batch_size: rows of a batch over all processes, unless a component specifies another.
      seed: seed of the permutations and of augmentation, 0 to 2**32 - 1.
      process: `(index, count)`: of `count` equal parts of the rows this process reads part `index`, or a sequence of
        parts.
      threads, workers: number of threads, or of processes, that read ahead; 0 of both reads on request.
      prefetch: batches read ahead by the threads, or by each worker.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B]}`, and the other arrays of the
      source, stacked.

    Raises:
      ValueError: an argument is out of range, or the batch size is not a multiple of the number of processes.
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
        check(len(component.source) > 0, f"{component.source.name} must contain an example, got none")
    lengths = [len(component.source) for component in components]
    plan = batch_plan(lengths, [component.weight for component in components], sizes, seed, (parts, count))
    return Loader(components, plan, seed, threads, workers, prefetch)


def eval_batches(
    source: Source, batch_size: int, *, process: tuple[int, int] = (0, 1), skipped: Skipped | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example, in order, in batches of one size.

    The last batch is padded with copies of one of its examples, so that a jitted step compiles once; `valid` marks the
    rows that count. The components of a mixture follow one another, each in batches of one shape. Every process
    yields equally many batches, and every example is valid on exactly one of them.

    Args:
      source: the examples.
      batch_size: rows of a batch over all processes.
      process: `(index, count)`: this process reads rows `index * B / count` to `(index + 1) * B / count`.
      skipped: counts the examples that cannot be read; their rows are not valid.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B], "valid": bool [B]}`, and the
      other arrays of the source, stacked.

    Raises:
      ValueError: batch_size is below 1 or not a multiple of the number of processes, or most examples cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    index, count = process
    if not 0 <= index < count:
        raise ValueError(f"process must be (index, count) with 0 <= index < count, got {process}.")
    check(batch_size % count == 0, f"batch_size must be a multiple of the {count} processes, got {batch_size}")
    local_rows = range(index * batch_size // count, (index + 1) * batch_size // count)
    report = Skipped() if skipped is None else skipped
    return _padded_batches(source, batch_size, local_rows, report)


def _padded_batches(
    source: Source, batch_size: int, local_rows: range, report: Skipped
) -> Iterator[dict[str, np.ndarray]]:
    for component in components_of(source):
        padding = None
        for start in range(0, len(component.source), batch_size):
            examples = [_usable(component.source, start + row, report) for row in local_rows]
            valid = np.asarray([example is not None for example in examples])
            padding = next((example for example in examples if example is not None), padding)
            if padding is None:
                padding = _first_usable(component.source, report)
            yield {**stacked([example or padding for example in examples]), "valid": valid}


def _usable(source: Source, index: int, report: Skipped) -> dict[str, np.ndarray] | None:
    """An example; None beyond the last one, or where it cannot be read."""
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
    examples = (_usable(source, index, Skipped()) for index in range(len(source)))
    example = next((example for example in examples if example is not None), None)
    if example is None:
        raise ValueError(f"{source.name} contains no readable example, such as {next(iter(report.reasons), '?')}")
    return example
