"""What quantised weights change in clips of moving digits: agreement with captions, and pixels from the same noise.

    python experiments/benchmarks/quantised_clips.py --workdir runs/moving --json clips.json

The first table has, for each form of the weights, the share of frames with the digit of the caption and of clips with
its direction, over `--num` clips of each of 40 captions from the same noise; float32 is the baseline. The second one
adds normal noise to the kernels and tables of the float32 run, of a size relative to their root mean square, and gives
the share of pixels of four clips that move by more than 32 of 255: what any other rounding of the weights does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import starflow_jax as sf
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.evaluation.video.caption_recognition import DIRECTIONS, NAMES, caption_agreement, read_digits
from starflow_jax.sampling.loaded_run import open_run
from starflow_jax.sampling.sample_requests import RunRequest

CAPTIONS = tuple(f"a {name} moving {direction}" for name in NAMES for direction in DIRECTIONS)
FORMS = (None, "int8", "int4")
NOISE = (1e-6, 1e-5, 1e-4, 1e-3)
VISIBLE = 32  # levels of 255


def agreement(workdir: Path, form: str | None, num: int, seed: int) -> dict[str, Any]:
    """Agreement of clips with their captions, with the standard error of the share of frames over clips."""
    run = sf.from_pretrained(workdir, quantise=form)
    drawn = sf.sample(run, captions=CAPTIONS, num=num, seed=seed, batch_size=32)
    captions = [caption for caption in CAPTIONS for _ in range(num)]
    x = np.asarray(drawn.samples.denoised, np.float32)
    found = caption_agreement(x, captions)
    wanted = np.repeat(np.arange(len(NAMES)), num * len(DIRECTIONS))
    shares = (read_digits(x) == wanted[:, None]).mean(axis=1)
    error = float(shares.std(ddof=1) / np.sqrt(len(shares)))
    return {"weights": form or "float32", "error": error, **found.to_dict()}


def moved(workdir: Path, sizes: tuple[float, ...], seed: int) -> list[dict[str, float]]:
    """The share of pixels that move by more than `VISIBLE`, for noise of each relative size in the parameters."""
    run = open_run(RunRequest(workdir))

    def draw(params: Any) -> np.ndarray:
        changed = dataclasses.replace(run, params=params)
        captions = ("a seven moving left", "a two moving up")
        return sf.sample(changed, captions=captions, num=2, seed=seed).videos.astype(int)

    whole, rows = draw(run.params), []
    for size in sizes:
        rng = np.random.default_rng(0)

        def noisy(leaf: jax.Array, size: float = size, rng: np.random.Generator = rng) -> Any:
            values = np.asarray(leaf)
            if values.ndim < 2:
                return leaf
            return values + np.float32(size * np.sqrt(np.mean(values**2))) * rng.standard_normal(
                values.shape, np.float32
            )

        change = np.abs(draw(jax.tree.map(noisy, run.params)) - whole)
        rows.append({"noise": size, "moved": float((change > VISIBLE).mean()), "mean": float(change.mean())})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run of experiments/moving_digits.py")
    parser.add_argument("--num", type=int, default=4, help="clips of each caption (default 4)")
    parser.add_argument("--seed", type=int, default=5, help="of the noise (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    options = parser.parse_args(arguments)
    rows = [agreement(options.workdir, form, options.num, options.seed) for form in FORMS]
    header = ("weights", "frames with the digit", "clips with the direction")
    cells = [
        (row["weights"], f"{row['frame_share']:.3f} ± {row['error']:.3f}", f"{row['direction_share']:.3f}")
        for row in rows
    ]
    print(text_table([header, *cells]))
    changes = moved(options.workdir, NOISE, 3)
    header = ("noise of the parameters", f"pixels moved by more than {VISIBLE}", "mean change")
    print(text_table([header, *((f"{r['noise']:g}", f"{r['moved']:.2%}", f"{r['mean']:.2f}") for r in changes)]))
    if options.json is not None:
        write_json(options.json, {"agreement": rows, "noise": changes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
