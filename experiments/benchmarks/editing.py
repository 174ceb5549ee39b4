"""Inverse problems on digits and on clips of moving digits, against what is known of their posteriors.

    python experiments/benchmarks/editing.py --workdir runs/digits --json editing.json
    python experiments/benchmarks/editing.py --workdir runs/digits --clips runs/moving --parts frames
    python experiments/benchmarks/editing.py --workdir runs/digits --quick

Parts, separated by commas in --parts:

- classes: the right half of held-out digits is filled in from the left one, of whichever class. The left half
  determines the class where a support-vector classifier of left halves alone, with calibrated probabilities (Platt) and
  fitted on the training digits, gives at least 0.95 to one class, which is not looked at otherwise. Two classifiers of
  whole digits that are fitted on the training digits read what was filled in; the table has the share of chains in
  which the true class is read, beside that of the whole digits themselves. The baseline is the same flow without the
  measurement in the chains: its samples with the visible half pasted in.
- coverage: x is drawn from the flow, y = A x + noise, and 19 chains draw from p(x | y): the range of 19 independent
  draws holds a further one with probability 0.9, so x is inside in 90 % of all cases if the chains have converged.
  Counted for every pixel, for the mean of all pixels, and for log p(x); the standard error is over digits.
- moves: for the same measurements, the effective sample size of each kind of moves, per move, and the time; the
  number of moves is --burn-in and --steps for latent-hamiltonian, and for others so much larger as theirs are cheaper.
- frames: the frames 2 to 5 of clips of 8 frames are filled in from the others by 4 chains, and, as the baseline, the
  flow continues the first two frames forward in time 4 times (its own conditional samples). Both are read as whole
  clips: the share of the frames 2 to 5 in which a classifier reads the digit that it reads in the real one; the root
  mean squared error of these frames, of pixels from -1 to 1; the difference of the displacements of the ink's centroid
  from those of the real clip, in pixels per frame, from frame 1 to 6; and the motion metric of
  `starflow video-quality` (consistency and evenness of displacements). "spliced" are the continuations with the two
  last frames of the real clip in place of theirs. Standard errors are over clips.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import starflow_jax as sf
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.digits import digits
from starflow_jax.editing.flow_prior import FlowPrior
from starflow_jax.editing.operators import BlockMeans, Mask, Operator
from starflow_jax.editing.posterior import Posterior
from starflow_jax.editing.posterior_sampling import PosteriorDraws, sample_posterior
from starflow_jax.evaluation.samples.features.digit_classifier import digit_classes
from starflow_jax.evaluation.video.caption_recognition import ink_levels, read_digits
from starflow_jax.evaluation.video.motion import centroid_displacements, luma, motion
from starflow_jax.media import image_grid, write_png
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.training import open_source

CERTAIN = 0.95
LEFT = np.broadcast_to(np.arange(8)[:, None] < 4, (8, 8, 1))
_SIGMA = 0.2  # of the measurements of "coverage" and "moves"
_CHAINS, _CLIP_CHAINS = 19, 4  # of "coverage", and of "frames"


def determined(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out digits whose left half determines the class: levels [n, 8, 8, 1] and labels [n], at most `count`."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    train, test = digits("train"), digits("test")
    halves = [np.asarray(source.images)[:, :, :4].reshape(len(source.images), -1) for source in (train, test)]
    model = CalibratedClassifierCV(SVC(gamma="scale", C=10.0), ensemble=False).fit(halves[0], train.labels)
    certain = np.flatnonzero(model.predict_proba(halves[1]).max(axis=1) >= CERTAIN)
    return np.asarray(test.images)[certain][:count], np.asarray(test.labels)[certain][:count]


def read_classes(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The class that each judge reads in pixels uint8 [n, 8, 8, 1]."""
    ink = ink_levels(pixels.astype(np.float64) / 127.5 - 1.0)
    return {"support vectors": read_digits(ink[..., None] * 2.0 - 1.0), "network": digit_classes(pixels)}


def classes(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether filled-in digits keep their class."""
    levels, labels = determined(arguments.digits)
    whole = dequantise(levels, np.full(levels.shape, 0.5, np.float32), 17)
    begin = time.perf_counter()
    options = chain_options(arguments, arguments.chains)
    restored = sf.restore(run, whole, Mask(LEFT), cond="any", options=options, seed=arguments.seed)
    seconds = time.perf_counter() - begin
    shown = np.rint(levels * (255 / 16)).astype(np.uint8)
    drawn = sf.sample(run, num=len(levels), seed=arguments.seed).images  # of the classes in turn
    pasted = np.where(LEFT, shown, drawn)
    figures: dict[str, Any] = {"digits": len(levels), "chains": arguments.chains, "seconds": seconds}
    filled = restored.pixels.reshape(-1, 8, 8, 1)
    for name, pixels, wanted in (
        ("whole", shown, labels),
        ("filled", filled, np.repeat(labels, arguments.chains)),
        ("pasted", pasted, labels),
    ):
        for judge, found in read_classes(pixels).items():
            right = (found == wanted).reshape(len(levels), -1).mean(axis=1)
            figures[f"{name}, {judge}"] = float(right.mean())
            figures[f"{name}, {judge}, error"] = float(right.std(ddof=1) / len(right) ** 0.5)
    assert restored.labels is not None
    figures["chains of the class"] = float((restored.labels == labels[:, None]).mean())
    figures |= mixing(restored.draws)
    np.savez(arguments.out / "classes.npz", image=restored.pixels, whole=shown, label=labels)
    picture(arguments.out / "classes.png", shown, restored.pixels)
    return figures


def picture(path: Path, whole: np.ndarray, filled: np.ndarray) -> None:
    """A row for each of the first digits: what is visible, some of the chains, and the whole digit; hidden is grey."""
    whole, filled = whole[:12], filled[:12]
    visible = np.where(LEFT, whole, 96)[:, None]
    cells = np.concatenate([visible, filled[:, :10], whole[:, None]], axis=1).astype(np.uint8)
    framed = np.pad(cells, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=128)
    write_png(path, image_grid(framed.reshape(-1, 9, 9, 1), cells.shape[1]), scale=6)


def coverage(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """How often the 90 % interval holds the truth."""
    model = sf.distribution(run)
    found: dict[str, Any] = {"digits": arguments.draws_from_flow, "chains": _CHAINS, "sigma": _SIGMA}
    for name, operator in {"mask": Mask(LEFT), "blocks": BlockMeans(2)}.items():
        truth, draws = simulated(model, operator, arguments, _CHAINS)
        count = len(truth)
        last = draws.last.reshape(count, _CHAINS, -1)
        statistics = {"pixels": (truth.reshape(count, -1), last)}
        statistics["mean"] = tuple(values.mean(axis=-1, keepdims=True) for values in statistics["pixels"])  # type: ignore[assignment]
        rows = jnp.asarray(draws.last.reshape(-1, *truth.shape[1:]))
        densities = [np.asarray(model.log_prob(x)) for x in (jnp.asarray(truth), rows)]
        statistics["log p(x)"] = (densities[0][:, None], densities[1].reshape(count, _CHAINS, 1))
        for statistic, (true, ranges) in statistics.items():
            inside = (true > ranges.min(axis=1)) & (true < ranges.max(axis=1))
            each = inside.mean(axis=1)
            found[f"{name}, {statistic}"] = float(each.mean())
            found[f"{name}, {statistic}, error"] = float(each.std(ddof=1) / count**0.5)
        found |= {f"{name}, {key}": value for key, value in mixing(draws).items()}
    return found


def simulated(
    model: sf.Distribution, operator: Operator, arguments: argparse.Namespace, chains: int, **changes: Any
) -> tuple[np.ndarray, PosteriorDraws]:
    """Data from the flow, [n, 8, 8, 1], and draws from the posteriors of their measurements."""
    count, keys = arguments.draws_from_flow, jax.random.split(jax.random.key(arguments.seed), 3)
    x = model.sample(keys[0], (count,))
    y = operator(x)
    y = y + _SIGMA * jax.random.normal(keys[1], y.shape)
    if isinstance(operator, Mask):
        y = operator(y)
    posterior = Posterior(FlowPrior(model), operator, y, jnp.full(count, _SIGMA))
    options = chain_options(arguments, chains, **changes)
    return np.asarray(x), sample_posterior(posterior, keys[2], model.shape, options)


def moves(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """The effective sample size of each kind of moves, of numbers of moves whose estimated cost is the same."""
    model, found = sf.distribution(run), {}
    for operator_name, operator in {"mask": Mask(LEFT), "blocks": BlockMeans(2)}.items():
        # An estimate of what a move costs, in moves of MALA; "seconds" say what it was.
        for name, cost in {"mala": 1, "hamiltonian": 8, "latent": 1, "both": 10, "latent-hamiltonian": 20}.items():
            few = argparse.Namespace(**{**vars(arguments), "draws_from_flow": arguments.few})
            few.burn_in, few.steps = 20 * arguments.burn_in // cost, 20 * arguments.steps // cost
            begin = time.perf_counter()
            _, draws = simulated(model, operator, few, 8, moves=name)
            seconds = time.perf_counter() - begin
            figures = mixing(draws)
            effective = figures["effective sample size"]
            each = {"effective per move": effective / (8 * draws.moves), "seconds with burn-in": seconds}
            found |= {f"{operator_name}, {name}, {key}": value for key, value in {**figures, **each}.items()}
    return found


def frames(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether frames in the middle of clips are filled in coherently, against continuations of the first frames."""
    source, count = open_source(run.config.data, "test", flow=run.config.flow), arguments.few
    plain = [i for i in range(10 * count) if source.caption(i).startswith("a")][:count]  # type: ignore[attr-defined]
    real = np.stack([source[index]["image"] for index in plain])
    captions = [source.caption(index) for index in plain]  # type: ignore[attr-defined]
    pixels = np.rint(real * (255 / 16)).astype(np.uint8)
    missing = np.isin(np.arange(8), range(2, 6)).reshape(8, 1, 1, 1)
    options = chain_options(arguments, _CLIP_CHAINS, moves="hamiltonian", leapfrog=4)
    whole = pixels.astype(np.float32) / 127.5 - 1.0
    begin = time.perf_counter()
    restored = sf.restore(run, whole, Mask(~missing), cond=captions, options=options, seed=arguments.seed)
    figures: dict[str, Any] = {"clips": count, "seconds": time.perf_counter() - begin}
    forward = continued(run, pixels, captions, arguments.seed)
    spliced = np.concatenate([forward[:, :, :6], np.broadcast_to(pixels[:, None, 6:], forward[:, :, 6:].shape)], axis=2)
    np.savez(arguments.out / "frames.npz", video=restored.pixels, whole=pixels, forward=forward)
    clip_picture(arguments.out / "frames.png", pixels, restored.pixels, forward)
    read = {"real": pixels[:, None], "filled": restored.pixels, "forward": forward, "spliced": spliced}
    for name, clips in read.items():
        for key, values in motions(clips, pixels).items():
            each = np.nanmean(values.reshape(count, -1), axis=1)
            figures[f"{name}, {key}"] = float(np.nanmean(each))
            if count > 1:
                figures[f"{name}, {key}, error"] = float(np.nanstd(each, ddof=1) / count**0.5)
    return figures | mixing(restored.draws)


def clip_picture(path: Path, whole: np.ndarray, filled: np.ndarray, forward: np.ndarray) -> None:
    """Three rows of frames for each of the first clips, in two columns: whole, filled in by a chain, and continued."""
    rows = np.stack([whole, filled[:, 0], forward[:, 0]], axis=1)[:6]
    columns = 2 - len(rows) % 2
    rows = np.moveaxis(rows.reshape(-1, columns, *rows.shape[1:]), 1, 2).reshape(-1, *whole.shape[2:])
    framed = np.pad(rows, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=128)
    write_png(path, image_grid(framed, columns * whole.shape[1]), scale=3)


def continued(run: Run, pixels: np.ndarray, captions: list[str], seed: int) -> np.ndarray:
    """Clips uint8 whose first two frames are given and whose others are sampled forward in time."""
    from starflow_jax.sampling import generate

    clips = []
    for number, (clip, caption) in enumerate(zip(pixels, captions, strict=True)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        drawn = generate(run.params, run.config, key, [caption] * _CLIP_CHAINS, prefix=clip[:2], guidance=0.0)
        clips.append(drawn.videos)
    return np.stack(clips)


def motions(clips: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of every clip, [n C], of clips uint8 [n, C, 8, H, W, 1] beside real ones [n, 8, ...]; see the module."""
    real = np.repeat(real, clips.shape[1], axis=0)
    clips = clips.reshape(real.shape)
    steps, wanted = (np.stack([centroid_displacements(luma(clip)) for clip in group]) for group in (clips, real))
    away = np.linalg.norm(steps - wanted, axis=2)
    summaries = [motion(clip) for clip in clips]
    error = (clips[:, 2:6].astype(np.float64) - real[:, 2:6]) / 127.5
    shown = read_digits(clips[:, 2:6] / 127.5 - 1.0) == read_digits(real[:, 2:6] / 127.5 - 1.0)
    return {
        "digit": shown.mean(axis=1),
        "error of frames 2 to 5": np.sqrt(np.mean(error**2, axis=(1, 2, 3, 4))),
        "difference of displacements": np.nanmean(away[:, 1:6], axis=1),
        "difference from frame 5 to 6": away[:, 5],
        "consistency": np.array([one.consistency for one in summaries]),
        "evenness": np.array([one.evenness for one in summaries]),
    }


def chain_options(arguments: argparse.Namespace, chains: int, **changes: Any) -> sf.ChainOptions:
    """The options of the chains."""
    draws = min(arguments.steps, 50)
    thin = -(-arguments.steps // draws)
    changes = {"moves": arguments.moves, "leapfrog": arguments.leapfrog, "candidates": arguments.candidates} | changes
    return sf.ChainOptions(chains=chains, draws=draws, thin=thin, burn_in=arguments.burn_in, **changes)


def mixing(draws: PosteriorDraws) -> dict[str, float]:
    """Figures of the chains: medians over posteriors and values that move."""
    moving = np.isfinite(draws.ess)
    used = ~np.isnan(draws.acceptance[0])
    return {
        "acceptance": float(draws.acceptance[:, used].mean()),
        "effective sample size": float(np.median(draws.ess[moving])),
        "effective sample size of log p(x | y)": float(np.median(draws.log_posterior_ess)),
        "R-hat": float(np.median(draws.r_hat[moving])),
    }


PARTS = {"classes": classes, "coverage": coverage, "moves": moves, "frames": frames}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--workdir", type=Path, required=True, help="a run of experiments/digits.py")
    option("--clips", type=Path, help="a run of experiments/moving_digits.py, for frames")
    option("--out", type=Path, default=Path("editing"), help="folder of what was filled in")
    option("--parts", default="classes,coverage,moves")
    option("--digits", type=int, default=60)
    option("--chains", type=int, default=8)
    option("--draws-from-flow", type=int, default=100)
    option("--few", type=int, default=4, help="posteriors of moves, and clips")
    option("--moves", default="latent-hamiltonian", help="of classes and coverage")
    option("--leapfrog", type=int, default=8)
    option("--candidates", type=int, default=32)
    option("--burn-in", type=int, default=60)
    option("--steps", type=int, default=20)
    option("--seed", type=int, default=0)
    option("--json", type=Path)
    option("--quick", action="store_true", help="a few digits and steps")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.digits, arguments.chains, arguments.draws_from_flow, arguments.few = 3, 2, 3, 1
        arguments.burn_in, arguments.steps = 16, 8
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"burn_in": arguments.burn_in, "steps": arguments.steps, "seed": arguments.seed}
    for name in arguments.parts.split(","):
        run = sf.from_pretrained(arguments.clips if name == "frames" else arguments.workdir)
        figures[name] = PARTS[name](run, arguments)
        rows = [(key, f"{value:.4g}") for key, value in figures[name].items()]
        print(text_table([(name, "value"), *rows]), flush=True)
        if arguments.json is not None:
            write_json(arguments.json, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
