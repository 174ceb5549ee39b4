"""Flows that learn densities of which no samples are given: double wells, and a field on a lattice.

    python experiments/targets.py wells:2 wells:8 phi4:4 --json targets.json
    python experiments/targets.py wells:64 --rounds 1
    python experiments/targets.py phi4:6 --folder runs/phi4      # keeps each round there, and resumes

- `wells:D`: the energy x1^4 - 6 x1^2 + x1 + |x2|^2 / 2 + ... + |xD|^2 / 2 of Noe, Olsson, Koehler and Wu (2019): two
  wells of unequal mass. Its log Z is a sum of quadratures of one number each.
- `phi4:L`: a scalar field on a periodic L x L lattice in the symmetric phase, with the action and the parameters of
  Albergo, Kanwar and Shanahan (2019). Its log Z is that of a transfer matrix (`lattice_quadrature.py`), for L to 6.

The first round of `sf.targets.fit` anneals points of a normal distribution, the later ones reweight samples of the
flow. The table compares the flow's effective sample size and log Z with the bars: at least 50 %, and Z within 1 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import starflow_jax as sf
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.lattice_quadrature import lattice_log_z
from starflow_jax.targets import Normal, Target

# The coupling of the field by the size of the lattice, at m^2 = -4: rows E1 and on of the paper's Table I, whose
# correlation length is a quarter of the side. It does not list 2 and 4.
COUPLINGS = {2: 8.0, 4: 8.0, 6: 6.975}
MASS = -4.0
BAR_EFFECTIVE, BAR_LOG_Z = 0.5, 0.01


class Problem(NamedTuple):
    """A target: its log-density, the shape of x, the exact log Z, where annealing starts, a flow, and its training."""

    name: str
    target: Target
    shape: tuple[int, ...]
    log_z: float
    start: Normal
    config: sf.FlowConfig
    options: dict[str, float]  # of `sf.targets.fit`
    symmetries: tuple[sf.targets.Symmetry, ...] = ()


def wells(dimension: int) -> Problem:
    """Two wells in the first number, the others normal and independent; two tokens of half of the numbers each."""
    if dimension < 2 or dimension % 2:
        raise SystemExit(f"wells:D needs an even number D from 2, got {dimension}")

    def target(x: jax.Array) -> jax.Array:
        return -(x[:, 0] ** 4) + 6 * x[:, 0] ** 2 - x[:, 0] - 0.5 * jnp.sum(x[:, 1:] ** 2, axis=1)

    grid = np.linspace(-5, 5, 20_001)
    line = np.trapezoid(np.exp(-(grid**4) + 6 * grid**2 - grid), grid)
    log_z = float(np.log(line) + (dimension - 1) / 2 * np.log(2 * np.pi))
    scale = jnp.where(jnp.arange(dimension) == 0, 2.0, 1.0)
    config = sf.FlowConfig(
        family="tarflow",
        channels=dimension // 2,
        image_size=(2, 1),
        width=32,
        num_blocks=4,
        layers_per_block=1,
        head_dim=32,
    )
    start = Normal((dimension,), scale=scale)
    # In many dimensions a flow learns fewer points by heart, and resampled ones, of which many are equal, all the more.
    options: dict[str, float] = {"num": 20_000, "steps": 500} if dimension <= 16 else {"num": 60_000, "steps": 600}
    return Problem(f"wells:{dimension}", target, (dimension,), log_z, start, config, options)


def phi4(size: int) -> Problem:
    """The field on a lattice; a token for each site, in the order of an image's pixels."""
    if size not in COUPLINGS:
        raise SystemExit(f"phi4:L needs L to be one of {', '.join(map(str, COUPLINGS))}, got {size}")
    coupling = COUPLINGS[size]

    def target(x: jax.Array) -> jax.Array:
        squares = sum((jnp.roll(x, 1, axis) - x) ** 2 for axis in (1, 2))
        return -jnp.sum(squares + MASS * x**2 + coupling * x**4, axis=(1, 2))

    config = sf.FlowConfig(
        family="tarflow", channels=1, image_size=size, width=32, num_blocks=3, layers_per_block=1, head_dim=32
    )
    log_z = lattice_log_z(size, MASS, coupling)
    start, options = Normal((size, size), scale=0.6), {"num": 40_000, "steps": 750}
    return Problem(f"phi4:{size}", target, (size, size), log_z, start, config, options, (jnp.negative,))


TRAINING = ("num", "steps", "reverse")  # arguments of `sf.targets.fit` that options of the script may replace
FAMILIES: dict[str, Callable[[int], Problem]] = {"wells": wells, "phi4": phi4}


def problem_of(text: str) -> Problem:
    """The problem that NAME:SIZE names; ends the program where there is none."""
    name, _, size = text.partition(":")
    if name not in FAMILIES or not size.isdigit():
        raise SystemExit(f"a target must be wells:D or phi4:L, got {text!r}")
    return FAMILIES[name](int(size))


def solve(problem: Problem, args: argparse.Namespace) -> dict[str, object]:
    """Fits a new flow, draws from it, and compares with the exact log Z."""
    begun, cpu = time.perf_counter(), time.process_time()
    model_key, fit_key, draw_key = jax.random.split(jax.random.key(args.seed), 3)
    flow: sf.Distribution | sf.targets.Symmetrised = sf.distribution(
        sf.Flow(problem.config, model_key), shape=problem.shape
    )
    if problem.symmetries and not args.plain:
        flow = sf.targets.symmetrised(flow, problem.symmetries)
    options = problem.options | {name: value for name in TRAINING if (value := getattr(args, name)) is not None}
    fitted = sf.targets.fit(
        flow,
        problem.target,
        fit_key,
        rounds=args.rounds,
        lr=args.lr,
        start=problem.start,
        annealing={"conditional": 0.98, "moves": 4},
        **options,
        folder=None if args.folder is None else args.folder / problem.name.replace(":", "-"),
    )
    drawn = sf.targets.draw(fitted.distribution, problem.target, draw_key, args.draws)
    error = float(drawn.log_z) - problem.log_z
    effective = float(drawn.effective_sample_size) / args.draws
    return {
        "target": problem.name,
        "options": options,
        "rounds": [vars(one) for one in fitted.rounds],
        "effective": effective,
        "log_z": float(drawn.log_z),
        "log_z_error": float(drawn.log_z_error),
        "bootstrap_error": float(drawn.bootstrap_log_z_error(draw_key)),
        "exact_log_z": problem.log_z,
        "difference": error,
        "reaches_bars": effective >= BAR_EFFECTIVE and abs(error) <= BAR_LOG_Z,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
    }


def main() -> None:
    """Parses the options, runs the targets, writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="NAME:SIZE", help="wells:D or phi4:L")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of drawing and tuning (default: 2)")
    parser.add_argument("--num", type=int, help="points in each round (default: by the target)")
    parser.add_argument("--steps", type=int, help="updates in each round (default: by the target)")
    parser.add_argument("--lr", type=float, default=4e-3, help="first learning rate (default: 0.004)")
    parser.add_argument("--reverse", type=float, help="weight of KL(q || p) from round 2 on (default: by the target)")
    parser.add_argument("--plain", action="store_true", help="without the symmetries of the target")
    parser.add_argument("--draws", type=int, default=20_000, help="samples of the result (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of all noise (default: 0)")
    parser.add_argument("--folder", type=Path, help="keeps each round there, and resumes")
    parser.add_argument("--json", type=Path, help="writes the results there")
    args = parser.parse_args()
    problems = [problem_of(text) for text in args.targets]
    rows, results = [["target", "effective", "log Z", "± 1 s.e.", "exact", "difference", "CPU s"]], []
    for problem in problems:
        row = solve(problem, args)
        results.append(row)
        numbers = ("log_z", "log_z_error", "exact_log_z", "difference")
        rows.append(
            [
                problem.name,
                f"{row['effective']:.1%}",
                *(f"{row[name]:.4f}" for name in numbers),
                f"{row['cpu_seconds']:.0f}",
            ]
        )
        print(text_table(rows), flush=True)
        if args.json is not None:
            settings = {name: getattr(args, name) for name in ("rounds", "lr", "draws", "seed")}
            write_json(args.json, {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
