"""Propose and verify on a trained run: depth, error and time of solvers with and without a learned inverse.

    starflow train-inverse --workdir runs/moving
    python experiments/benchmarks/learned_inverse.py --workdir runs/moving --guidance 3 --json verified.json
    python experiments/benchmarks/learned_inverse.py --workdir runs/moving --quick

Every setting draws the same samples (--draws of them, one at a time: fresh noise that no calibration has seen) and is
compared with the sequential solver: depth is the number of network evaluations that follow one another, passes of the
learned inverse included; the error is the relative error (root mean square) of a sample before denoising. The settings
attribute the difference: the start of the iteration (the noise, or for videos the previous frame, or the learned
estimate), committing settled tokens against iterating the whole sequence, and secant steps on top. `--windows` adds
shorter windows, which evaluate fewer tokens and follow one another more often. A run without a learned inverse is
compared without its settings. Times are the shortest of --rounds alternating rounds on this machine, without
compilation, and the ratio is that of the sequential solver to each setting in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.sampling.image_sampling import Samples
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.sample_requests import RunRequest, SampleRequest
from starflow_jax.sampling.sample_run import sample_run
from starflow_jax.solvers import AnySolver, Jacobi, OnePass, Secant, Sequential, SlidingJacobi, verified
from starflow_jax.training.inverse.inverse_folder import has_inverse

CAPTION = "a seven moving left"
_WHOLE = 4096


def settings(tolerance: float, *, video: bool, learned: bool, windows: Sequence[int] = ()) -> dict[str, AnySolver]:
    """The solvers to compare, by name.

    Args:
      tolerance: relative change at which a token has settled.
      video: whether tokens may start from the previous frame.
      learned: whether there is a learned inverse to start from.
      windows: tokens of an evaluation, of further solvers that do not iterate whole sequences.
    """
    square = tolerance**2  # the tolerances of these solvers bound a mean square
    start = "frame" if video else "noise"
    found: dict[str, AnySolver] = {
        "sequential": Sequential(),
        f"jacobi, {start} start": Jacobi.whole(start=start, tolerance=square, max_iterations=_WHOLE),
        f"sliding, {start} start": SlidingJacobi(_WHOLE, tolerance, start),
        **{f"sliding, {start} start, {n} tokens": SlidingJacobi(n, tolerance, start) for n in windows},
    }
    if not learned:
        return found
    return {
        **found,
        "jacobi, learned start": Jacobi.whole(start="learned", tolerance=square, max_iterations=_WHOLE),
        "secant, learned start": Secant(block=None, start="learned", tolerance=square),
        "verified": verified(_WHOLE, tolerance),
        "one-pass": OnePass(),
        **{f"verified, {n} tokens": verified(n, tolerance) for n in windows},
    }


def draw(run: Run, request: SampleRequest, solver: AnySolver) -> tuple[np.ndarray, Any]:
    """The noisy sample, flattened, and the report of drawing it."""
    samples = sample_run(run, dataclasses.replace(request, solver=solver), warn=lambda sentence: None).samples
    noisy = samples.noisy if isinstance(samples, Samples) else samples.x
    return np.asarray(noisy, np.float64).ravel(), samples.report


def measure(
    run: Run, request: SampleRequest, *, draws: int, rounds: int, tolerance: float, windows: Sequence[int] = ()
) -> list[dict[str, float | str | bool]]:
    """One row for every setting.

    Args:
      request: what to draw, one sample.
      draws: number of samples, with the seeds request.seed, request.seed + 1 and so on.
      rounds: how often each sample is drawn.
      tolerance, windows: as in `settings`.
    """
    learned = has_inverse(run.workdir)
    solvers = settings(tolerance, video=run.config.data.frames > 0, learned=learned, windows=windows)
    depths: dict[str, list[int]] = {name: [] for name in solvers}
    errors: dict[str, list[float]] = {name: [] for name in solvers}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    failed: set[str] = set()
    for seed in range(request.seed, request.seed + draws):
        exact, fastest = None, dict.fromkeys(solvers, float("inf"))
        for _ in range(rounds):
            for name, solver in solvers.items():
                x, report = draw(run, dataclasses.replace(request, seed=seed), solver)
                exact = x if exact is None else exact
                fastest[name] = min(fastest[name], report.seconds)
                if not report.converged:
                    failed.add(name)
                if len(depths[name]) <= seed - request.seed:
                    depths[name].append(report.evaluations)
                    errors[name].append(float(np.linalg.norm(x - exact) / np.linalg.norm(exact)))
        for name in solvers:
            seconds[name].append(fastest[name])
    rows: list[dict[str, float | str | bool]] = []
    for name in solvers:
        mean = float(np.mean(seconds[name]))
        rows.append(
            {
                "setting": name,
                "depth": float(np.mean(depths[name])),
                "worst_depth": float(np.max(depths[name])),
                "error": float(np.mean(errors[name])),
                "worst_error": float(np.max(errors[name])),
                "seconds": mean,
                "sequential_over_this": float(np.mean(seconds["sequential"])) / mean,
                "converged": name not in failed,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="run, also without a learned inverse"
    )
    parser.add_argument("--caption", default=None, help=f"of a run that reads captions (default: {CAPTION!r})")
    parser.add_argument("--label", type=int, default=None, metavar="K", help="class of a run with classes")
    parser.add_argument("--guidance", type=float, default=None, metavar="W", help="default: the configuration's")
    parser.add_argument("--draws", type=int, default=8, metavar="N", help="samples (default 8)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times that each is drawn (default 3)")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X", help="of settled tokens (default 1e-3)")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[], metavar="N", help="also iterate windows of so many tokens"
    )
    parser.add_argument("--seed", type=int, default=1000, metavar="N", help="of the first sample (default 1000)")
    parser.add_argument("--quick", action="store_true", help="one sample, drawn once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    run = open_run(RunRequest(arguments.workdir))
    captioned = run.config.text is not None or run.config.data.text_encoder is not None
    request = SampleRequest(
        num=1,
        captions=(arguments.caption or CAPTION,) if captioned else None,
        label=arguments.label,
        guidance=arguments.guidance,
        seed=arguments.seed,
        denoise="none",
    )
    draws, rounds = (1, 1) if arguments.quick else (arguments.draws, arguments.rounds)
    sizes = {"draws": draws, "rounds": rounds}
    rows = measure(run, request, **sizes, tolerance=arguments.tolerance, windows=arguments.windows)
    header = ("setting", "depth", "worst", "error", "worst", "seconds", "sequential / this", "converged")
    table = [
        (
            str(row["setting"]),
            f"{row['depth']:.1f}",
            f"{row['worst_depth']:.0f}",
            f"{row['error']:.2g}",
            f"{row['worst_error']:.2g}",
            f"{row['seconds']:.3f}",
            f"{row['sequential_over_this']:.2f}",
            "yes" if row["converged"] else "no",
        )
        for row in rows
    ]
    print(text_table([header, *table]))
    if arguments.json is not None:
        write_json(
            arguments.json,
            {
                "workdir": str(arguments.workdir),
                "step": run.step,
                "inverse_step": run.learned_inverse.step if has_inverse(run.workdir) else None,
                **sizes,
                "tolerance": arguments.tolerance,
                "rows": rows,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
