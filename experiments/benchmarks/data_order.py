"""Memory and time of the order in which examples are read, in comparison with a stored permutation.

    python -m starflow_jax.experiments.benchmarks.data_order --json order.json

The order of `train_loader` is a function of the index: `data.pipeline.batch_order` computes every element of a
permutation when it is asked for. The baseline, numpy's permutation of as many int64, is what an order that is stored
takes. Each runs in a process of its own, whose peak of resident memory is read before and after; the difference is
given. Both give as many batches as `--batches`, from the beginning and from the middle of an epoch. The third line is
the index that aspect-ratio buckets add: four bytes for each example. No example is read.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data.pipeline.batch_order import batch_plan
from starflow_jax.data.sources.size_index import by_bucket_of_arrays

_KINDS = ("function", "stored", "buckets")
_CHUNK = 10**6


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def first_examples(kind: str, examples: int, batch_size: int, batches: int) -> int:
    """Computes the examples of some batches; returns the sum of their indices."""
    middle = examples // batch_size // 2
    wanted = [*range(batches // 2), *range(middle, middle + batches - batches // 2)]
    if kind == "stored":
        order = np.random.default_rng(0).permutation(examples)
        return sum(int(order[batch * batch_size : (batch + 1) * batch_size].sum()) for batch in wanted)
    lengths = [examples]
    if kind == "buckets":
        rng = np.random.default_rng(0)
        shapes = np.asarray([(480, 640), (640, 480)], np.int32)
        sizes = (shapes[rng.integers(2, size=min(_CHUNK, examples - at))] for at in range(0, examples, _CHUNK))
        indices = by_bucket_of_arrays(sizes, ("4:3", "3:4"))
        lengths = list(map(len, indices.values()))
    count = len(lengths)
    plan = batch_plan(lengths, [1.0] * count, [batch_size] * count, 0, ((0,), 1))
    return sum(example for batch in wanted for _, example in plan[batch].examples)


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Measures one order in a new process."""
    sizes = [str(args.examples), str(args.batch_size), str(args.batches)]
    done = subprocess.run(
        [sys.executable, __file__, "--kind", kind, "--sizes", *sizes], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def measure_here(kind: str, examples: int, batch_size: int, batches: int) -> dict[str, float]:
    """Measures one order in this process."""
    first_examples(kind, 1000, 10, 2)  # what is imported and allocated once does not count
    before, start = peak_bytes(), time.perf_counter()
    first_examples(kind, examples, batch_size, batches)
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - start}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10**8, help="examples (default: 100,000,000)")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="a million examples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kind", choices=_KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind is not None:
        print(json.dumps(measure_here(args.kind, *args.sizes)))
        return
    if args.quick:
        args.examples, args.batches = 10**6, 4
    results = {kind: measure(kind, args) for kind in _KINDS}
    names = ("this order", "a stored permutation", "this order, and the indices of two buckets")
    rows = [[f"order of {args.examples} examples", "peak MiB", "share of stored", f"s for {args.batches} batches"]]
    for kind, name in zip(_KINDS, names, strict=True):
        share = results[kind]["bytes"] / results["stored"]["bytes"]
        rows.append([name, f"{results[kind]['bytes'] / 2**20:.1f}", f"{share:.4f}", f"{results[kind]['seconds']:.2f}"])
    print(text_table(rows))
    if args.json is not None:
        write_json(args.json, {"examples": args.examples, "batch_size": args.batch_size, **results})


if __name__ == "__main__":
    main()
