"""Noise of one level and one Tweedie step against a noise-conditioned flow and iterative denoising: FID of samples.

    starflow train --config experiments/fashion_mnist.py:tweedie --workdir runs/tweedie
    starflow train --config experiments/fashion_mnist.py:levels --workdir runs/levels
    python experiments/benchmarks/denoising.py --single-level runs/tweedie --noise-conditioned runs/levels
    python experiments/benchmarks/denoising.py --single-level runs/a --noise-conditioned runs/b --quick   # a test

Both runs are of the same images with classes. Samples of all classes in turn are drawn without guidance, in `--sets`
sets, each of its own seed; all methods of one run denoise the same draws. FID is the Fréchet distance of the features
of a small classifier that is trained here (`fashion_mnist.py`) between a set and the test images, and the table has the
share of samples that the classifier assigns to their class. The baseline is one Tweedie step (`score`) of the run
`--single-level`; the last column is the FID over that of the baseline. Errors are standard errors over sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fashion_mnist import features_of, mean_and_error, scaled, trained_classifier

from starflow_jax.core.figures import finite, text_table, write_json
from starflow_jax.data import ArraySource
from starflow_jax.evaluation.samples.features.moments import Moments
from starflow_jax.evaluation.samples.metrics.frechet_distance import frechet_distance
from starflow_jax.media import image_grid, write_png
from starflow_jax.sampling import class_labels, sample
from starflow_jax.training import load_run, open_source

RUNS = ("single-level", "noise-conditioned")
_SHOWN = 20  # samples of each method in the picture


def methods(levels: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of the ways to sample: the run, then the fields of `SamplingOptions`."""
    rows: list[tuple[str, dict[str, Any]]] = [(run, {"denoise": name}) for run in RUNS for name in ("none", "score")]
    for number in levels:
        for step in ("ode", "sde"):
            rows.append(("noise-conditioned", {"denoise": "iterative", "denoise_levels": number, "denoise_step": step}))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--single-level", type=Path, required=True, help="run on noise of one level, the baseline")
    add("--noise-conditioned", type=Path, required=True, help="run with flow.noise_levels on the same images")
    add("--levels", type=int, nargs="+", default=[10, 25], help="numbers of levels of iterative denoising")
    add("--samples", type=int, default=500, help="samples in a set (default 500)")
    add("--sets", type=int, default=3, help="sets of samples, each of its own seed (default 3)")
    add("--epochs", type=int, default=8, help="epochs of the classifier's training (default 8)")
    add("--batch", type=int, default=250, help="images sampled at a time (default 250)")
    add("--seed", type=int, default=0, help="seed of everything random (default 0)")
    add("--json", type=Path, help="also write the figures as JSON")
    add("--picture", type=Path, help="a PNG with the first samples of every method, one row each")
    add("--quick", action="store_true", help="few images and levels")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(levels=[2], samples=10, sets=2, epochs=1, batch=10)
    runs = dict(zip(RUNS, map(load_run, (options.single_level, options.noise_conditioned)), strict=True))
    single, conditioned = (run[0] for run in runs.values())
    data, others = single.data, conditioned.data
    if conditioned.flow.noise_levels is None:
        parser.error(f"--noise-conditioned must be a run with flow.noise_levels, got {options.noise_conditioned}")
    if (data.source, data.path) != (others.source, others.path):
        parser.error(
            f"--noise-conditioned must be a run on the images of --single-level, got {others.source!r} "
            f"{others.path or ''}"
        )
    if not (single.flow.num_classes and conditioned.flow.num_classes):
        parser.error("--single-level and --noise-conditioned must be runs with classes, got one without")
    train, test = (open_source(data, split, flow=single.flow) for split in ("train", "test"))
    if not isinstance(train, ArraySource) or not isinstance(test, ArraySource):
        parser.error(f"--single-level must be a run on images in memory (idx, npz or digits), got {data.source!r}")
    model = trained_classifier(train, options.epochs, options.seed)
    moments = Moments.from_features(features_of(scaled(test.images, test.levels), model)[0])

    rows: list[dict[str, Any]] = []
    shown = []
    for run, fields in methods(options.levels):
        config, _, params, _ = runs[run]
        labels = class_labels(config, options.samples)
        distances, right, seconds = [], [], 0.0
        for index in range(options.sets):
            key = jax.random.key(options.seed + 1 + index)
            drawn = sample(params, config, key, labels, guidance=0.0, batch_size=options.batch, **fields)
            found, classes = features_of(drawn.images, model)
            distances.append(frechet_distance(Moments.from_features(found), moments))
            right.append(float(np.mean(classes == labels)))
            seconds += drawn.report.seconds
            if index == 0:
                shown += list(drawn.images[:_SHOWN])
        fid, recognised = mean_and_error(np.array(distances)), mean_and_error(np.array(right))
        rows.append({"run": run, **fields, "fid": fid, "recognised": recognised, "seconds": seconds})
        print(f"{run} {fields}: {fid['mean']:.2f} +- {fid['error']:.2f}", flush=True)
    baseline = next(row for row in rows if row["run"] == "single-level" and row["denoise"] == "score")
    for row in rows:
        row["ratio"] = row["fid"]["mean"] / baseline["fid"]["mean"]
    print(table(rows))
    if options.picture is not None:
        write_png(options.picture, image_grid(np.stack(shown), columns=min(_SHOWN, options.samples)))
    if options.json is not None:
        sizes = {"samples": options.samples, "sets": options.sets, "seed": options.seed}
        steps = {f"{name}_step": run[3] for name, run in runs.items()}
        write_json(options.json, finite({**sizes, **steps, "rows": rows}))
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    cells = [("run", "denoise", "levels", "step", "FID", "class recognised", "FID over the baseline's")]
    for row in rows:
        levels, step = str(row.get("denoise_levels", "")), str(row.get("denoise_step", ""))
        fid, recognised = row["fid"], row["recognised"]
        distance = f"{fid['mean']:.2f} +- {fid['error']:.2f}"
        share = f"{recognised['mean']:.3f} +- {recognised['error']:.3f}"
        cells.append((row["run"], row["denoise"], levels, step, distance, share, f"{row['ratio']:.2f}"))
    return text_table(cells)


if __name__ == "__main__":
    raise SystemExit(main())
