"""Time to the first frame of a video and rate of the others: streaming in comparison with sampling all at once.

    python experiments/benchmarks/streaming.py                         # random weights of the moving-digits flow
    python experiments/benchmarks/streaming.py --workdir runs/video --frames 24 --json streaming.json
    python experiments/benchmarks/streaming.py --quick                 # a tiny flow once, seconds

Both sample the same videos. "batch" is `videos.generate`, whose first frame is ready together with its last; "stream"
is `sampling.streaming`, on one device and on two, of which the second computes the shallow blocks and the denoiser. On
a CPU the two devices are simulated: they share the cores, and so show what runs concurrently but not the gain of two
devices. Compilation is not included; times are the best of several rounds, in which all methods run in alternation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# This is read when JAX starts; it has no effect if there are accelerators.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import numpy as np

from starflow_jax.core.config import ExperimentConfig, build
from starflow_jax.experiments.moving_digits import get_config
from starflow_jax.flows.parameters import Params, initialise
from starflow_jax.sampling.streaming.stream import stream
from starflow_jax.sampling.videos.video_sampling import generate
from starflow_jax.solvers import Jacobi, Sequential, SlidingJacobi
from starflow_jax.training import load_run

_SOLVERS = {
    "sequential": Sequential(),
    "jacobi": Jacobi(per_sample=True),
    "sliding": SlidingJacobi(),
}
_CAPTION = "a seven moving left"


def random_weights(config: ExperimentConfig) -> Params:
    """Random parameters whose output projections are small but not zero, so that solvers need several iterations."""
    _, params = initialise(config.flow, jax.random.key(0))
    for i, block in enumerate(params["blocks"].values()):
        kernel = block["proj_out"]["kernel"]
        block["proj_out"]["kernel"] = 0.02 * jax.random.normal(jax.random.key(i), kernel.shape)
    return params


def measure(params: Params, config: ExperimentConfig, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Best time of every sampling method for one video, after a compiling round, and the difference of the videos."""
    devices = jax.devices()
    ways = {"stream, 1 device": devices[:1]} | ({"stream, 2 devices": devices[:2]} if len(devices) > 1 else {})
    best: dict[str, dict[str, float]] = {}

    def note(way: str, first: float, result: float) -> None:
        entry = best.setdefault(way, {"first_frame": first, "seconds": result})
        best[way] = {"first_frame": min(entry["first_frame"], first), "seconds": min(entry["seconds"], result)}

    largest = 0.0
    for index in range(rounds + 1):
        key = jax.random.key(index)
        result = generate(params, config, key, [_CAPTION], **options)
        if index:
            note("batch", result.report.seconds, result.report.seconds)
        for way, way_devices in ways.items():
            videos = stream(params, config, key, [_CAPTION], devices=way_devices, **options)
            denoised = np.stack([frame.denoised for frame in videos], axis=1)
            largest = max(largest, float(np.abs(denoised - result.denoised).max()))
            if index:
                report = videos.report
                assert report.first_frame is not None  # the stream has ended
                note(way, report.first_frame, report.seconds)
    frames = result.videos.shape[1]
    for figures in best.values():
        figures["frames_per_second"] = frames / figures["seconds"]
        figures["first_frame_gain"] = best["batch"]["first_frame"] / figures["first_frame"]
        figures["rate_gain"] = best["batch"]["seconds"] / figures["seconds"]
    return {"frames": frames, "largest_difference": largest, "ways": best}


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    rows = [["solver", "way", "first frame s", "earlier by", "frames/s", "faster by"]]
    for solver, result in results.items():
        for way, figures in result["ways"].items():
            numbers = [figures["first_frame"], figures["first_frame_gain"]]
            numbers += [figures["frames_per_second"], figures["rate_gain"]]
            formats = ("{:.3f}", "{:.2f}x", "{:.1f}", "{:.2f}x")
            rows.append([solver, way, *(f.format(n) for f, n in zip(formats, numbers, strict=True))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", metavar="DIR", type=Path, help="a trained run (default: random weights)")
    parser.add_argument("--frames", metavar="N", type=int, help="of the video (default: as trained)")
    parser.add_argument("--solver", action="append", choices=_SOLVERS, help="repeatable (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, of which the best counts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="a tiny flow once: shows that everything runs")
    options = parser.parse_args(arguments)
    if options.workdir is not None:
        config, _, params, _ = load_run(options.workdir)
    else:
        config = build(ExperimentConfig, get_config("tiny" if options.quick else ""))
        params = random_weights(config)
    results = {}
    for name in options.solver or (["sequential"] if options.quick else list(_SOLVERS)):
        drawing = {"solver": _SOLVERS[name], "frames": options.frames}
        results[name] = measure(params, config, drawing, 1 if options.quick else options.rounds)
    print(table(results))
    if options.json:
        about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "devices": len(jax.devices())}
        options.json.write_text(json.dumps({**about, "solvers": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
