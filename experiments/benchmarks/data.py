"""Throughput of the image pipeline in comparison with decoding alone, on the same number of threads or processes.

    python -m starflow_jax.experiments.benchmarks.data --json data.json

The files are JPEGs of 320 x 400 pixels, cropped from photographs of scikit-image (coffee, astronaut, cat, rocket), so
that they decode like photographs. Decoding alone opens each file and decodes all its pixels with Pillow. The pipeline
reads, decodes, resizes and crops to 256 x 256, flips, shuffles and batches the same files with `train_loader`. The
target is 400 images/s on two cores, or the rate of decoding alone divided by at most 1.3. Both are measured
alternately, several times, and the medians are compared. On a shared machine, the CPU time per image in milliseconds
gives the rate of two dedicated cores: 2000 divided by it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from starflow_jax.core.config import DataConfig, FlowConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data import train_loader
from starflow_jax.data.sources.source_opening import open_source

TARGET_RATE, TARGET_RATIO = 400.0, 1.3
_HEIGHT, _WIDTH = 320, 400
_CHUNK, _PART = 16, 256


def write_images(folder: Path, count: int) -> list[Path]:
    """Writes `count` JPEGs (quality 90), each a different crop of a photograph."""
    from skimage import data

    photographs = [data.coffee(), data.astronaut(), data.rocket(), data.cat()]
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        image = Image.fromarray(photographs[index % len(photographs)])
        scale = max(_HEIGHT / image.height, _WIDTH / image.width) * rng.uniform(1.0, 1.3)
        image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
        left, top = rng.integers(image.width - _WIDTH + 1), rng.integers(image.height - _HEIGHT + 1)
        paths.append(folder / f"{index:05d}.jpg")
        image.crop((left, top, left + _WIDTH, top + _HEIGHT)).save(paths[-1], quality=90)
    return paths


def decode(path: Path) -> int:
    """Decodes one file."""
    with Image.open(path) as image:
        image.load()
        return image.width


class Rate(NamedTuple):
    """Images per second, and CPU milliseconds of this process per image (None if other processes decode)."""

    rate: float
    cpu: float


def timed(call: Callable[[], int], seconds: float) -> Rate:
    """Calls `call`, which returns a number of images, for some seconds."""
    count, start, computed = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += call()
    return Rate(count / (time.perf_counter() - start), 1000 * (time.process_time() - computed) / count)


def measure(folder: Path, paths: list[Path], args: argparse.Namespace) -> dict[str, float]:
    """Medians over rounds that measure both."""
    sizes = {"channels": 3, "image_size": 256, "patch_size": 8}
    flow = FlowConfig(family="tarflow", width=32, num_blocks=1, layers_per_block=1, head_dim=32, **sizes)
    source = open_source(DataConfig(source="images", path=str(folder), crop="random", flip=0.5), "train", flow=flow)
    loader = train_loader(
        source, args.batch_size, 0, threads=args.threads * (not args.workers), workers=args.workers, prefetch=2
    )
    pool: Executor = ProcessPoolExecutor(args.workers) if args.workers else ThreadPoolExecutor(args.threads)
    parts = itertools.cycle([paths[start : start + _PART] for start in range(0, len(paths), _PART)])
    bare: list[Rate] = []
    pipeline: list[Rate] = []
    try:
        with pool:
            list(itertools.islice(pool.map(decode, paths), 64))
            for _ in range(3):  # batches that were read ahead are not measured
                next(loader)
            for _ in range(args.rounds):
                bare.append(timed(lambda: len(list(pool.map(decode, next(parts), chunksize=_CHUNK))), args.seconds))
                next(loader)
                pipeline.append(timed(lambda: len(next(loader)["image"]), args.seconds))
    finally:
        loader.close()
    result = {"ratio": statistics.median(b.rate / w.rate for b, w in zip(bare, pipeline, strict=True))}
    for kind, rates in (("bare", bare), ("pipeline", pipeline)):
        result[kind] = statistics.median(rate.rate for rate in rates)
        if not args.workers:
            result[f"{kind}_cpu_ms"] = statistics.median(rate.cpu for rate in rates)
    return result


def _cpu(result: dict[str, float], kind: str) -> str:
    return f"{result[f'{kind}_cpu_ms']:.2f}" if f"{kind}_cpu_ms" in result else "-"


def main() -> None:
    """Measures, prints a table, and reports whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="files (default: 2048)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes instead of threads")
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = write_images(Path(name), args.images)
        result = measure(Path(name), paths, args)
    how = f"{args.workers} processes" if args.workers else f"{args.threads} threads"
    rows = [
        ["256 x 256 from 320 x 400 JPEG", "images/s", "bare / this", "CPU ms per image"],
        [f"bare decoding, {how}", f"{result['bare']:.0f}", "1", _cpu(result, "bare")],
        [f"pipeline, {how}", f"{result['pipeline']:.0f}", f"{result['ratio']:.2f}", _cpu(result, "pipeline")],
    ]
    print(text_table(rows))
    met = result["pipeline"] >= TARGET_RATE or result["ratio"] <= TARGET_RATIO
    print(
        f"{'met' if met else 'missed'}: at least {TARGET_RATE:.0f} images/s, or within {TARGET_RATIO} times of bare "
        "decoding"
    )
    if args.json is not None:
        write_json(args.json, {**result, "threads": args.threads, "workers": args.workers, "met": met})


if __name__ == "__main__":
    main()
