"""Batches: an endless shuffled stream for training, one padded pass for evaluation.

Images leave here as integers. Dequantisation and noise are drawn in the training step from the step's own
key, so that what a step computes depends on its number and not on the loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import grain
import numpy as np

from starflow_jax.data.source import Source


def train_loader(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    shard: tuple[int, int] = (0, 1),
    threads: int = 0,
    prefetch: int = 16,
) -> grain.DatasetIterator:
    """Endless shuffled batches that can be stopped and resumed exactly.

    Every epoch is a fresh permutation drawn from `seed`; a batch may span two epochs, so all have one size
    and no example is left out. The iterator's `get_state()` is a small dictionary of JSON values, and
    `set_state()` on a loader built with the same arguments continues with exactly the batches that would
    have followed.

    Args:
      source: the examples.
      batch_size: examples in a batch, on this host.
      seed: seed of the permutations, 0 to 2**32 - 1.
      shard: `(index, count)`: of `count` hosts this is number `index`; it reads every `count`-th example.
      threads: threads that read ahead; 0 for a source in memory.
      prefetch: examples read ahead by those threads.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B]}`, and what else the source gives, stacked.

    Raises:
      ValueError: a number out of range, or a shard without examples.
    """
    index, count = shard
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to 2**32 - 1, got {seed}.")
    if not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {shard}.")
    if len(source) < count:
        raise ValueError(f"source must hold an example for each of {count} shards, got {len(source)}.")
    if threads < 0 or prefetch < 0:
        raise ValueError(f"threads and prefetch must not be negative, got {threads} and {prefetch}.")

    # The protocol is all that Grain reads of a source, but its own type asks for more.
    examples = grain.MapDataset.source(cast(Any, source))
    if count > 1:
        examples = examples.slice(slice(index, None, count))
    batches = examples.shuffle(seed=seed).repeat().batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))


def eval_batches(source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example, in order, in batches of one size.

    The last batch is filled up with copies of its first example, so a jitted step compiles once; `valid`
    says which rows count.

    Args:
      source: the examples.
      batch_size: rows in a batch.

    Returns:
      Iterator over `{"image": uint8 [B, ..., H, W, C], "label": int32 [B], "valid": bool [B]}`, and what else the
      source gives, stacked.

    Raises:
      ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return _padded_batches(source, batch_size)


def _padded_batches(source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(source), batch_size):
        stop = min(start + batch_size, len(source))
        examples = [source[index] for index in range(start, stop)]
        examples += [examples[0]] * (batch_size - len(examples))
        stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        yield {**stacked, "valid": np.arange(batch_size) < stop - start}
