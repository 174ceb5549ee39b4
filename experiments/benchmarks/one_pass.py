"""Samples of a learned inverse in one pass beside those of the sequential solver: what judges read in them, and time.

    starflow train-inverse --workdir runs/moving
    python experiments/benchmarks/one_pass.py --workdir runs/moving --guidance 3 --json one_pass.json
    python experiments/benchmarks/one_pass.py --workdir runs/tiny --quick      # a few samples, as a test

For clips of moving digits, `--num` clips of each of 40 captions: the share of frames with the digit of the caption, and
of clips with its direction. For digits, `--num` images of each class: the share whose class a classifier reads. Errors
are standard errors over samples. All solvers start from the same noise. "seconds" are those of the draws, without
compilation; the baseline is the sequential solver, and the ratio is its time over that of the other. `starflow
evaluate --metrics fid --solver one-pass` measures FID.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import starflow_jax as sf
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data.sources.moving_digits import CAPTIONS
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.samples.features.digit_classifier import digit_classes
from starflow_jax.evaluation.video.caption_recognition import clip_agreement
from starflow_jax.solvers import AnySolver, OnePass, Sequential
from starflow_jax.training.inverse.inverse_folder import has_inverse

SOLVERS: dict[str, AnySolver] = {"sequential": Sequential(), "one-pass": OnePass()}


def of_clips(
    run: sf.Run, solver: AnySolver, captions: Sequence[str], num: int, fields: dict[str, Any]
) -> dict[str, Any]:
    """What is read in clips of every caption, and the seconds of drawing them."""
    drawn = sf.sample(run, captions=captions, num=num, solver=solver, **fields)
    of_clips = [caption for caption in captions for _ in range(num)]
    frames, directions = clip_agreement(np.asarray(drawn.samples.denoised, np.float32), of_clips)
    shares = {"frames with the digit": frames.mean(axis=1), "clips with the direction": directions.astype(np.float64)}
    return {"seconds": drawn.samples.report.seconds, "samples": len(frames), "shares": with_errors(shares)}


def of_images(run: sf.Run, solver: AnySolver, num: int, fields: dict[str, Any]) -> dict[str, Any]:
    """What is read in images of every class, and the seconds of drawing them."""
    classes = run.config.flow.num_classes
    parts = [sf.sample(run, num=num, label=label, solver=solver, **fields) for label in range(classes)]
    read = np.concatenate([digit_classes(part.images) == label for label, part in enumerate(parts)])
    seconds = sum(part.samples.report.seconds for part in parts)
    return {"seconds": seconds, "samples": len(read), "shares": with_errors({"class": read.astype(np.float64)})}


def with_errors(shares: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The mean of each share over samples [n], and its standard error."""
    return {name: {"mean": float(np.mean(one)), "error": standard_error(one)} for name, one in shares.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="run with a learned inverse")
    parser.add_argument("--num", type=int, default=4, metavar="N", help="samples of each caption or class (default 4)")
    parser.add_argument("--guidance", type=float, default=None, metavar="W", help="default: the configuration's")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="samples drawn at a time (default 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    parser.add_argument("--quick", action="store_true", help="one sample of each class, or of two captions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.num < 1:
        parser.error(f"--num must be an integer >= 1, got {options.num}")
    run = sf.from_pretrained(options.workdir)
    if run.config.data.source not in ("digits", "moving_digits"):
        parser.error(f"--workdir must be a run on digits or moving_digits, got {run.config.data.source!r}")
    if not (run.config.data.frames or run.config.flow.num_classes):
        parser.error("--workdir must be a run on digits with classes, got one without")
    if not has_inverse(options.workdir):
        parser.error(f"--workdir must contain a learned inverse: starflow train-inverse --workdir {options.workdir}")
    captions, num = (CAPTIONS[:2], 1) if options.quick else (CAPTIONS, options.num)
    fields = {"seed": options.seed, "batch_size": options.batch, "guidance": options.guidance}
    rows = []
    for name, solver in SOLVERS.items():
        clips = run.config.data.frames > 0
        found = of_clips(run, solver, captions, num, fields) if clips else of_images(run, solver, num, fields)
        rows.append({"solver": name, **found})
    for row in rows:
        row["sequential_over_this"] = rows[0]["seconds"] / row["seconds"]
    header = ("solver", *rows[0]["shares"], "seconds", "sequential / this")
    cells = [
        (
            row["solver"],
            *(f"{share['mean']:.3f} +- {share['error']:.3f}" for share in row["shares"].values()),
            f"{row['seconds']:.3f}",
            f"{row['sequential_over_this']:.1f}",
        )
        for row in rows
    ]
    print(text_table([header, *cells]))
    if options.json is not None:
        inverse = run.learned_inverse
        sizes = {"num": num, "guidance": options.guidance, "seed": options.seed, "inverse_step": inverse.step}
        write_json(options.json, {"workdir": str(options.workdir), "step": run.step, **sizes, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
