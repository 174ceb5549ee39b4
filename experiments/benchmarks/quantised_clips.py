"""What quantised weights change in clips of moving digits: agreement with captions, and pixels from the same noise.

    python experiments/benchmarks/quantised_clips.py --workdir runs/moving --json clips.json
    python experiments/benchmarks/quantised_clips.py --workdir runs/tiny --quick      # a few clips, as a test

The first table has, for each form of the weights, the share of frames with the digit of the caption and of clips with
its direction, over `--num` clips of each of 40 captions from the same noise; float32 is the baseline. The second one
compares four clips with those of the float32 weights, pixel by pixel: for rounded weights, and for float32 weights
with normal noise on the kernels that are quantised. "error" is the root mean square of the change of these kernels
relative to that of the kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import starflow_jax as sf
from starflow_jax.core.choices import Quantisation
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data.sources.moving_digits import CAPTIONS
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.video.caption_recognition import clip_agreement
from starflow_jax.nn.stored_kernels import quantised_kernel, values
from starflow_jax.porting.tensor_names import flatten, is_stacked, unflatten

FORMS: tuple[Quantisation, ...] = ("int8", "fp8", "int4")
NOISE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
COMPARED = ("a seven moving left", "a two moving up")  # two clips of each
VISIBLE = 32  # levels of 255


def agreement(run: sf.Run, form: str, captions: Sequence[str], num: int, seed: int) -> dict[str, Any]:
    """Agreement of clips with their captions; the standard errors are over clips."""
    drawn = sf.sample(run, captions=captions, num=num, seed=seed, batch_size=32)
    of_clips = [caption for caption in captions for _ in range(num)]
    frames, directions = clip_agreement(np.asarray(drawn.samples.denoised, np.float32), of_clips)
    return {
        "weights": form,
        "clips": len(frames),
        "frame_share": float(frames.mean()),
        "frame_error": standard_error(frames.mean(axis=1)),
        "direction_share": float(directions.mean()),
        "direction_error": standard_error(directions.astype(np.float64)),
    }


def with_kernels(run: sf.Run, change: Callable[[np.ndarray], np.ndarray]) -> tuple[sf.Run, float]:
    """The run with other kernels of its layers, and the relative error of these, all layers together."""
    params, squares, errors = flatten(run.params), 0.0, 0.0
    for path, leaf in params.items():
        if not is_stacked(path) or not path.endswith(".kernel"):
            continue
        whole = np.asarray(leaf)
        params[path] = jnp.asarray(np.stack([change(kernel) for kernel in whole]))  # layer by layer
        squares += float(np.sum(whole.astype(np.float64) ** 2))
        errors += float(np.sum((np.asarray(params[path], np.float64) - whole) ** 2))
    return dataclasses.replace(run, params=unflatten(params)), float(np.sqrt(errors / squares))


def rounded(form: Quantisation) -> Callable[[np.ndarray], np.ndarray]:
    """What a quantised kernel stands for, in float32."""

    def change(kernel: np.ndarray) -> np.ndarray:
        numbers, scale = quantised_kernel(kernel, form)
        return np.asarray(values(jnp.asarray(numbers), jnp.asarray(scale), form))

    return change


def in_bfloat16(kernel: np.ndarray) -> np.ndarray:
    """A kernel rounded to bfloat16."""
    return np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)


def noisy(size: float, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A kernel with normal noise, relative to its root mean square."""

    def change(kernel: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(kernel.shape, np.float32)
        return kernel + np.float32(size * np.sqrt(np.mean(kernel**2))) * noise

    return change


def moved(run: sf.Run, seed: int) -> list[dict[str, Any]]:
    """The share of pixels that move by more than `VISIBLE`, and the mean change, for each change of the kernels."""
    whole = _pixels(run, seed)
    changes = [("bfloat16", in_bfloat16), *((form, rounded(form)) for form in FORMS)]
    changes += [(f"noise of {size:g}", noisy(size, np.random.default_rng(seed))) for size in NOISE]
    rows = []
    for name, change in changes:
        other, error = with_kernels(run, change)
        difference = np.abs(_pixels(other, seed) - whole)
        row = {"weights": name, "error": error, "moved": float((difference > VISIBLE).mean())}
        rows.append(row | {"mean": float(difference.mean())})
    return rows


def _pixels(run: sf.Run, seed: int) -> np.ndarray:
    videos: np.ndarray = sf.sample(run, captions=COMPARED, num=2, seed=seed).videos.astype(int)
    return videos


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="a run of experiments/moving_digits.py")
    parser.add_argument("--num", type=int, default=4, help="clips of each caption (default 4)")
    parser.add_argument("--seed", type=int, default=5, help="of the noise (default 5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="one clip of two captions")
    options = parser.parse_args(arguments)
    if options.num < 1:
        parser.error(f"--num must be an integer >= 1, got {options.num}")
    captions, num = (COMPARED, 1) if options.quick else (CAPTIONS, options.num)
    run = sf.from_pretrained(options.workdir)
    if not (run.config.data.frames and run.config.text):
        parser.error(f"--workdir must be a run of experiments/moving_digits.py, got {options.workdir}")
    models = {"float32": run} | {form: sf.from_pretrained(options.workdir, quantise=form) for form in FORMS}
    rows = [agreement(model, form, captions, num, options.seed) for form, model in models.items()]
    table = [("weights", "frames with the digit", "clips with the direction")]
    for row in rows:
        shares = [f"{row[f'{name}_share']:.3f} ± {row[f'{name}_error']:.3f}" for name in ("frame", "direction")]
        table.append((row["weights"], *shares))
    print(text_table(table))
    changes = moved(run, options.seed)
    header = ("weights", "error", f"pixels moved by more than {VISIBLE}", "mean change")
    cells = [(r["weights"], f"{r['error']:.1e}", f"{r['moved']:.2%}", f"{r['mean']:.2f}") for r in changes]
    print(text_table([header, *cells]))
    if options.json is not None:
        write_json(options.json, {"agreement": rows, "moved": changes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
