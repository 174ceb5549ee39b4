"""Post-training on digits against the best that any density could do: rewards and KLs for several weights of the KL.

    python experiments/benchmarks/post_training.py --workdir runs/digits --out runs/curve --plot curve.png
    python experiments/benchmarks/post_training.py --workdir runs/digits --out runs/threes --betas 0.15 --lr 1e-4 \
        --advantage standardised --steps 400 --kl-bound 6
    python experiments/benchmarks/post_training.py --workdir runs/digits --out runs/classes --classes all --betas 0.1 \
        --lr 1e-4 --steps 300 --batch 320
    python experiments/benchmarks/post_training.py --workdir runs/digits --out runs/curve --quick

The reward is 1 for an image in which a support-vector classifier reads the target, else 0; a multilayer perceptron,
which is never rewarded, judges as well. Of all densities, E[reward] - beta KL(q || p_ref) is largest for q proportional
to p_ref exp(reward / beta): with the base rate p of the target, it shows the target with probability
q = p e / (1 - p + p e), e = exp(1 / beta), at a KL of q log(q / p) + (1 - q) log((1 - q) / (1 - p)). The table gives
both beside what the trained flows reach on new samples, with standard errors over these, and the log-likelihood of
held-out images of the target without a class, before and after. Standardised advantages have no such optimum: what
counts for the KL changes with the deviation of the rewards. `--classes all` trains samples of every class to show it,
in place of samples without a class to show the target; KLs are then means over classes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.config.post_training_config import PolicyConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.core.regular_files import read_json
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.likelihood.image_likelihood import dequantised, standard_error
from starflow_jax.flows.parameters import Params
from starflow_jax.post_training.drawn_samples import Sampler
from starflow_jax.post_training.post_train import post_train
from starflow_jax.post_training.post_train_request import PostTrainRequest
from starflow_jax.post_training.post_training_setup import PostTrainingSetup, default_experiment
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.training import load_run
from starflow_jax.training.checkpoints.finished_run import newest_step
from starflow_jax.training.checkpoints.workdir import CSV_FILE
from starflow_jax.training.loop.metrics import read_metrics

_NEW_SAMPLES = 1_000_000  # steps from here on are never trained: their noise is new
_DRAWS = 8  # of the dequantisation noise of held-out images


def optimum(rate: float, beta: float) -> tuple[float, float]:
    """The share of the target and the KL in nats of the density that maximises E[reward] - beta KL."""
    odds = rate / (1.0 - rate) * math.exp(1.0 / beta)
    share = odds / (1.0 + odds)
    return share, kl_of_share(rate, share)


def kl_of_share(rate: float, share: float) -> float:
    """The smallest KL of a density in which the target has this share, in nats; infinite where no sample shows it."""
    terms = [(share, rate), (1.0 - share, 1.0 - rate)]
    return sum(q * math.log(q / p) if p > 0 else math.inf for q, p in terms if q > 0)


def measured(sampler: Sampler, params: Params, samples: int) -> dict[str, float]:
    """Means over new samples of a flow, with standard errors; the share of distinct images."""
    batches = math.ceil(samples / sampler.experiment.train.batch_size)
    drawn = [sampler(params, _NEW_SAMPLES + index) for index in range(batches)]
    columns = {"reward": [d.reward for d in drawn], "kl": [d.log_ratio for d in drawn]}
    columns |= {name: [d.judged[name] for d in drawn] for name in drawn[0].judged}
    figures: dict[str, float] = {}
    for name, parts in columns.items():
        values = np.concatenate([np.asarray(part) for part in parts])
        figures |= {name: float(values.mean()), f"{name}_error": standard_error(values)}
    pixels = np.concatenate([d.pixels for d in drawn])
    figures["unique"] = len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) / len(pixels)
    return figures


def held_out(params: Params, flow: Any, target: int | None) -> np.ndarray:
    """log p of held-out digits, nats/dim averaged over draws of the noise, [n].

    Args:
      target: the class whose digits are read, without a class; None for all digits, each given its class.
    """
    source = digits("test")
    shown = np.full(len(source.labels), True) if target is None else source.labels == target
    images = source.images[shown]
    labels = source.labels.astype(np.int32) if target is None else np.full(len(images), -1, np.int32)
    indices, total = jnp.arange(len(images)), np.zeros(len(images))
    for draw in range(_DRAWS):
        x = np.asarray(dequantised(jax.random.key(0), jnp.asarray(images), indices, draw, source.levels))
        total += log_likelihoods(params, flow, x, labels, batch_size=len(x))
    return total / _DRAWS / images[0].size


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--workdir", type=Path, required=True, help="a run of experiments/digits.py")
    option("--out", type=Path, required=True, help="folder of the trained runs, one for each weight and seed")
    option("--target", type=int, default=3)
    option(
        "--classes",
        choices=("none", "all"),
        default="none",
        help="condition of the samples; all: each is its own target",
    )
    option("--betas", default="0.25,0.1,0.05", help="separated by commas; empty to show the rows of --add alone")
    option("--seeds", default="0")
    option("--steps", type=int, default=150)
    option("--batch", type=int, default=256, help="samples of a step; a multiple of 10 with --classes all")
    option("--advantage", choices=("centred", "standardised"), default="centred")
    option("--reward", default="digit", help="a name, or FILE.py:FUNCTION (default digit)")
    option("--kl-bound", type=float, help="nats of the KL that end a training")
    option("--lr", type=float, default=2e-4)
    option("--samples", type=int, default=1024)
    option("--add", type=Path, action="append", default=[], help="a file of --json whose rows are shown, too")
    option("--json", type=Path)
    option("--plot", type=Path)
    option("--quick", action="store_true", help="a few steps and samples")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.betas, arguments.steps, arguments.samples, arguments.batch = "0.25", 3, 64, 60
    every_class = arguments.classes == "all"
    if every_class and (arguments.batch < 20 or arguments.batch % 10):
        parser.error(f"--batch must be a multiple of 10 of at least 20 with --classes all, got {arguments.batch}")
    base = load_run(arguments.workdir)
    before = held_out(base[2], base[0].flow, None if every_class else arguments.target)
    rows: list[dict[str, Any]] = [row for path in arguments.add for row in read_json(path)["rows"]]
    if not all({"advantage", "classes", "lr", "batch", "least_kl"} <= row.keys() for row in rows):
        parser.error("--add must name files that this version of the script wrote, got a row without its fields")
    for seed in map(int, arguments.seeds.split(",")):
        for beta in map(float, filter(None, arguments.betas.split(","))):
            rows.append(_row(arguments, beta, seed, before))
            print(_line(rows[-1]), flush=True)
            if arguments.json is not None:
                write_json(arguments.json, {"rows": rows})
    if arguments.plot is not None:
        plot(arguments.plot, rows)
    print(text_table([_HEADER, *map(_cells, rows)]))
    return 0


def _row(arguments: argparse.Namespace, beta: float, seed: int, before: np.ndarray) -> dict[str, Any]:
    """Trains with one weight and seed, and measures the result and the base."""
    config, every_class = load_run(arguments.workdir)[0], arguments.classes == "all"
    target, labels = (None, tuple(range(10))) if every_class else (arguments.target, (-1,))
    experiment = default_experiment(
        config,
        newest_step(arguments.workdir),
        labels=labels,
        target=target,
        reward=arguments.reward,
        judges=("digit-network",),
        policy=PolicyConfig(beta=beta, advantage=arguments.advantage),
        kl_bound=arguments.kl_bound,
        seed=seed,
    )
    train = dataclasses.replace(
        experiment.train,
        steps=arguments.steps,
        batch_size=arguments.batch,
        warmup=min(5, arguments.steps),
        lr=arguments.lr,
        min_lr=0.1 * arguments.lr,
        log_every=5,
    )
    experiment = dataclasses.replace(experiment, train=train, group_size=arguments.batch // len(labels))
    reader = arguments.reward.rpartition(":")[2] + ("_classes" if every_class else "")
    folder = arguments.out / f"{reader}_{arguments.advantage}_beta_{beta:g}_seed_{seed}"
    done = post_train(PostTrainRequest(arguments.workdir, folder, experiment, progress=False))
    setup = PostTrainingSetup.from_base(arguments.workdir, experiment)
    config, _, params, _ = load_run(folder)
    base, new = (measured(setup.sampler, each, arguments.samples) for each in (setup.sampler.run.params, params))
    gain = held_out(params, config.flow, target) - before
    has_optimum = (arguments.advantage, arguments.reward, arguments.classes) == ("centred", "digit", "none")
    curve = [(one["step"], one["reward"], one["kl"]) for one in read_metrics(folder / CSV_FILE) if "kl" in one]
    return {
        "reward": arguments.reward,
        "classes": arguments.classes,
        "advantage": arguments.advantage,
        "beta": beta,
        "seed": seed,
        "steps": done.step,
        "batch": arguments.batch,
        "ending": done.ending,
        "lr": arguments.lr,
        "seconds": done.seconds,
        "base": base,
        "new": new,
        # The baseline of this comparison: no density that shows the target as often is closer to the base run.
        "least_kl": kl_of_share(base["reward"], new["reward"]),
        "held_out": {"before": float(before.mean()), "gain": float(gain.mean()), "gain_error": standard_error(gain)},
        "curve": curve,
        **(against_optimum(base, new, beta) if has_optimum else {}),
    }


def against_optimum(base: dict[str, float], new: dict[str, float], beta: float) -> dict[str, Any]:
    """What is reached of E[reward] - beta KL, beside its maximum over all densities."""
    share, kl = optimum(base["reward"], beta)
    best, reached = share - beta * kl, new["reward"] - beta * new["kl"]
    return {
        "optimum": {"reward": share, "kl": kl, "objective": best},
        "objective": reached,
        # The baseline of this comparison: the gain over the base run of the best density.
        "share_of_the_best_gain": (reached - base["reward"]) / (best - base["reward"]),
    }


_HEADER = (
    "advantage",
    "beta",
    "lr",
    "steps",
    "batch",
    "seed",
    "reward",
    "judge",
    "KL",
    "least KL",
    "best reward",
    "best KL",
    "of the best gain",
    "held out",
    "distinct",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    new, held = row["new"], row["held_out"]
    against = ("-", "-", "-")
    if "optimum" in row:
        best = row["optimum"]
        against = (f"{best['reward']:.3f}", f"{best['kl']:.2f}", f"{100 * row['share_of_the_best_gain']:.0f} %")
    return (
        row["advantage"],
        f"{row['beta']:g}",
        f"{row['lr']:g}",
        str(row["steps"]),
        str(row["batch"]),
        str(row["seed"]),
        f"{new['reward']:.3f} ± {new['reward_error']:.3f}",
        f"{new['digit-network']:.3f} ± {new['digit-network_error']:.3f}",
        f"{new['kl']:.2f} ± {new['kl_error']:.2f}",
        f"{row['least_kl']:.2f}",
        *against,
        f"{held['before']:.3f} {held['gain']:+.3f} ± {held['gain_error']:.3f}",
        f"{100 * new['unique']:.1f} %",
    )


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {cell}" for name, cell in zip(_HEADER, _cells(row), strict=True))


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws rewards over KLs: the optimum, the trainings on their way, and what they reach."""
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rate = rows[0]["base"]["reward"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = np.linspace(rate, 1.0, 400)
    axes.plot([kl_of_share(rate, s) for s in shares], shares, color="black", label="best density")
    for index, row in enumerate(rows):
        color, new = f"C{index}", row["new"]
        label = f"beta {row['beta']:g}, {row['advantage']}" + (
            f", seed {row['seed']}" if len({r["seed"] for r in rows}) > 1 else ""
        )
        _, rewards, kls = zip(*row["curve"], strict=True)
        axes.plot(kls, rewards, color=color, linewidth=0.7, alpha=0.6)
        axes.errorbar(
            new["kl"], new["reward"], new["reward_error"], new["kl_error"], color=color, marker="o", label=label
        )
        if "optimum" in row:
            axes.plot(row["optimum"]["kl"], row["optimum"]["reward"], color=color, marker="x", linestyle="none")
    axes.set_xlabel("KL to the reference in nats")
    axes.set_ylabel("reward: share of the target")
    axes.legend(fontsize=8, title="dot: trained, cross: its optimum", title_fontsize=8)
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
