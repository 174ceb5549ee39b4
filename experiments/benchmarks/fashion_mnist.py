"""Everything that `docs/fashion_mnist.md` reports about a run of `experiments/fashion_mnist.py`, on held-out images.

    python experiments/benchmarks/fashion_mnist.py --workdir runs/fashion --json fashion.json
    python experiments/benchmarks/fashion_mnist.py --workdir runs/tiny --quick      # shows that everything runs

- Likelihood by uniform dequantisation: bits/dim given the class; without a label, log p(x) = log mean_y p(x | y), which
  is at most log(classes) higher, against Glow's 2.96 (arXiv 1810.09136); the importance-weighted bound of K draws.
- Bayes accuracy, from the same log p(x | y).
- Samples: FID by the features of a small classifier that is trained here on the training images, against the test
  images, with the training images as the floor; the share of samples that the classifier assigns to their class.
- Out-of-distribution detection: AUROC of the scores of `starflow study` on scikit-learn's digits, negatives,
  shuffled pixels, faint and constant pictures.
- Exact sampling: depth, time and error of every solver; the baseline is the sequential solver.

Errors are standard errors: over images for likelihoods and accuracies, DeLong's for AUROC, over the sets of samples
(one seed each) for FID.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from starflow_jax.core.config import ExperimentConfig
from starflow_jax.core.figures import finite, text_table, write_json
from starflow_jax.core.registries import SOLVERS
from starflow_jax.data import ArraySource, bits_per_dim
from starflow_jax.evaluation.applications.other_images import other_images
from starflow_jax.evaluation.applications.out_of_distribution import SCORES, TrainingStatistics, detect
from starflow_jax.evaluation.likelihood.bayes_classifier import bayes_accuracy, log_mean_exp
from starflow_jax.evaluation.likelihood.image_likelihood import log_probs, standard_error
from starflow_jax.evaluation.samples.features.moments import Moments
from starflow_jax.evaluation.samples.metrics.frechet_distance import frechet_distance
from starflow_jax.flows.parameters import Params, count
from starflow_jax.sampling import class_labels, sample
from starflow_jax.solvers import AnySolver, named_solver, reads_estimates
from starflow_jax.solvers.named import accepted_flags, needs_calibration
from starflow_jax.training import load_run, open_source

GLOW = 2.96  # bits/dim, Nalisnick et al., arXiv 1810.09136
PARTS = ("likelihood", "samples", "ood", "solvers")
# Out-of-distribution pictures beside digits, made from the test pictures (`evaluation.applications.other_images`).
OTHERS = ("negatives", "shuffled pixels", "faint", "constant")


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """A run, its images, and the sizes of the measurements."""

    params: Params
    config: ExperimentConfig
    train: ArraySource
    test: ArraySource
    options: argparse.Namespace

    def class_log_probs(self, source: ArraySource, draws: int, stream: int) -> np.ndarray:
        """log p(x | y) in nats, [draws, n, classes]."""
        key = jax.random.fold_in(jax.random.key(self.options.seed), stream)
        labels = np.arange(self.config.flow.num_classes, dtype=np.int32)
        size = self.options.batch
        flow = self.config.flow
        options = {"draws": draws, "batch_size": size, "noise_level": flow.lowest_level}
        return log_probs(self.params, flow, source, key, labels=labels, **options)

    def bits(self, log_p: np.ndarray, source: ArraySource) -> np.ndarray:
        """Bits/dim of log p(x) = log mean_y p(x | y) for log p(x | y) [..., n, classes]: [..., n]."""
        total = np.logaddexp.reduce(log_p, axis=-1) - math.log(log_p.shape[-1])
        return np.asarray(bits_per_dim(total, source.images[0].size, source.levels))


def first(source: ArraySource, number: int) -> ArraySource:
    """The first images of a source, in its classes."""
    return source.subset(np.arange(min(number, len(source))), source.name)


def likelihood(run: Benchmark) -> dict[str, Any]:
    """Bits/dim by one draw and by the importance-weighted bound, and the accuracy of the Bayes rule."""
    options, test = run.options, first(run.test, run.options.images)
    start = time.perf_counter()
    dims, classes = test.images[0].size, run.config.flow.num_classes
    key = jax.random.fold_in(jax.random.key(options.seed), 0)
    flow = run.config.flow
    sizes = {"draws": options.draws, "batch_size": options.batch, "noise_level": flow.lowest_level}
    own = log_probs(run.params, flow, test, key, **sizes)
    given = np.asarray(bits_per_dim(own, dims, test.levels)).mean(axis=0)
    some = first(test, options.bayes_images)
    log_p = run.class_log_probs(some, options.draws, 0)
    bits = run.bits(log_p, some).mean(axis=0)
    few = first(test, options.bound_images)
    drawn = run.class_log_probs(few, options.bound_draws, 1)
    single = run.bits(drawn, few).mean(axis=0)
    bound = run.bits(log_mean_exp(drawn), few)
    # p(x) is at least p(x | y) p(y), the classes being equally likely.
    without_label = float(given.mean()) + math.log2(classes) / dims
    return {
        "draws": options.draws,
        "given_class": {"images": len(test), **mean_and_error(given)},
        "without_label_at_most": without_label,
        "without_label": {"images": len(some), **mean_and_error(bits)},
        "cost_of_no_label": mean_and_error(bits - given[: len(some)]),
        "importance_weighted": {
            "images": len(few),
            "draws": options.bound_draws,
            "one_draw": mean_and_error(single),
            "bits_per_dim": mean_and_error(bound),
            "gain": mean_and_error(single - bound),
        },
        "published": {"Glow (arXiv 1810.09136)": GLOW},
        "beats_glow": without_label < GLOW,
        "accuracy": dataclasses.asdict(bayes_accuracy(log_p, some.labels)),
        "seconds": time.perf_counter() - start,
    }


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """The mean of independent values [n] and its standard error."""
    return {"mean": float(np.mean(values)), "error": standard_error(values)}


def features_of(images: np.ndarray, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """The last hidden layer [n, d] of the classifier for images uint8 [n, H, W, 1], and its classes [n]."""
    x = images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0
    for kernel, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        x = np.maximum(x @ kernel + bias, 0.0)
    return x, np.argmax(x @ model.coefs_[-1] + model.intercepts_[-1], axis=1)


def trained_classifier(train: ArraySource, epochs: int, seed: int) -> Any:
    """A perceptron with 256 and 64 hidden units, fitted to the training images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    size = min(128, len(train))
    model = MLPClassifier((256, 64), batch_size=size, max_iter=epochs, random_state=seed)
    x = scaled(train.images, train.levels).reshape(len(train), -1).astype(np.float32) / 127.5 - 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen, not a limit
        return model.fit(x, train.labels)


def scaled(images: np.ndarray, levels: int) -> np.ndarray:
    """Integer images stretched to 0..255, as samples are."""
    return np.rint(images * (255.0 / (levels - 1))).astype(np.uint8)


def samples(run: Benchmark) -> dict[str, Any]:
    """FID by the classifier's features, and the share of samples of their class, over several seeds."""
    options, train, test = run.options, run.train, run.test
    start = time.perf_counter()
    model = trained_classifier(train, options.epochs, options.seed)
    fitted = time.perf_counter() - start
    real, read = features_of(scaled(test.images, test.levels), model)
    moments = Moments.from_features(real)
    number = min(options.samples, len(train) // 2)

    def distances(sets: Sequence[np.ndarray]) -> dict[str, float]:
        values = np.array([frechet_distance(Moments.from_features(part), moments) for part in sets])
        return mean_and_error(values)

    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(train))
    shown = [order[np.arange(number) + k * number] for k in range(min(options.sets, len(train) // number))]
    floor = distances([features_of(scaled(train.images[rows], train.levels), model)[0] for rows in shown])
    labels = class_labels(run.config, number)
    rows = []
    for guidance in options.guidance:
        parts, right, seconds = [], [], 0.0
        for index in range(options.sets):
            key = jax.random.key(options.seed + 1 + index)
            drawn = sample(run.params, run.config, key, labels, guidance=guidance, batch_size=options.batch)
            of_samples, classes = features_of(drawn.images, model)
            parts.append(of_samples)
            right.append(float(np.mean(classes == labels)))
            seconds += drawn.report.seconds
        recognised = mean_and_error(np.array(right))
        rows.append({"guidance": guidance, "fid": distances(parts), "recognised": recognised, "seconds": seconds})
    return {
        "samples": number,
        "sets": options.sets,
        "reference": len(test),
        "classifier_accuracy": float(np.mean(read == test.labels)),
        "classifier_seconds": fitted,
        "training_images": floor,
        "rows": rows,
    }


def resized_digits(test: ArraySource) -> ArraySource:
    """Scikit-learn's handwritten digits, enlarged to the size of the images by bilinear interpolation."""
    from sklearn.datasets import load_digits

    ink = np.rint(load_digits().images * (255.0 / 16)).astype(np.uint8)[: len(test)]
    _, height, width, _ = test.images.shape
    large = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in ink]
    images = np.rint(np.stack(large)[..., None] * ((test.levels - 1) / 255.0)).astype(np.uint8)
    return ArraySource("digits", images, np.zeros(len(images), np.int32), test.levels, test.num_classes)


def ood(run: Benchmark) -> dict[str, Any]:
    """AUROC of the scores of `starflow study` on digits and on altered test pictures."""
    start = time.perf_counter()
    number, dims = run.options.ood_images, run.test.images[0].size
    train, test = first(run.train, number), first(run.test, number)

    def bits(source: ArraySource, stream: int) -> np.ndarray:
        values = run.bits(run.class_log_probs(source, run.options.draws, stream), source)
        return np.where(np.isfinite(values), values, np.inf).mean(axis=0) * dims

    training = TrainingStatistics.from_training(train, bits(train, 2))
    others = other_images(test, seed=run.options.seed)
    sets = {"digits": resized_digits(test), **{name: others[name] for name in OTHERS}}
    scored = {name: (source, bits(source, 4 + index)) for index, (name, source) in enumerate(sets.items())}
    rows = detect(training, (test, bits(test, 3)), scored)
    return {"images": number, "rows": [row.to_dict() for row in rows], "seconds": time.perf_counter() - start}


def solvers(run: Benchmark) -> dict[str, Any]:
    """Depth, seconds (best of alternating rounds) and error against the sequential solver, for batches of images."""
    options, flow = run.options, run.config.flow
    chosen: dict[str, AnySolver] = {}
    for name in SOLVERS.names():
        if needs_calibration(name):
            continue
        flags = accepted_flags(name)
        given = {flags[flag]: value for flag, value in (("tolerance", options.tolerance),) if flag in flags}
        solver = named_solver(name, flow, **given)
        if not reads_estimates(solver):
            chosen[name] = solver
    rows = []
    for batch in options.solver_batches:
        labels = class_labels(run.config, batch)
        reference: np.ndarray | None = None
        best = dict.fromkeys(chosen, math.inf)
        found: dict[str, Any] = {}
        for turn in range(options.rounds + 1):  # the first one compiles
            for name, solver in sorted(chosen.items(), key=lambda item: item[0] != "sequential"):
                key = jax.random.key(options.seed + turn)
                drawn = sample(run.params, run.config, key, labels, solver=solver, guidance=0.0, batch_size=batch)
                noisy = drawn.noisy.astype(np.float64)  # an unfinished picture may be too large to square in float32
                if name == "sequential":
                    reference = noisy
                assert reference is not None
                gap = np.sqrt(((noisy - reference) ** 2).mean(axis=(1, 2, 3)))
                error = float((gap / np.sqrt((reference**2).mean(axis=(1, 2, 3)))).max())
                known = found.setdefault(name, {"depth": [], "error": [], "settled": []})
                known["depth"].append(drawn.report.evaluations)
                known["error"].append(error)
                known["settled"].append(drawn.report.converged)
                if turn:
                    best[name] = min(best[name], drawn.report.seconds)
        for name, known in found.items():
            rows.append(
                {
                    "solver": name,
                    "batch": batch,
                    "depth": float(np.mean(known["depth"])),
                    "seconds": best[name],
                    "ratio": best["sequential"] / best[name],
                    "largest_error": float(np.max(known["error"])),
                    "settled": sum(known["settled"]),
                    "draws": len(known["settled"]),
                }
            )
    return {"tolerance": options.tolerance, "rounds": options.rounds, "rows": rows}


def tables(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    shown = []
    if "likelihood" in report:
        part = report["likelihood"]
        weighted = part["importance_weighted"]
        rows: list[tuple[str, ...]] = [("likelihood", "images", "draws", "bits/dim")]
        for name, key in (("given the true class", "given_class"), ("no label", "without_label")):
            rows.append((name, str(part[key]["images"]), str(part["draws"]), _error(part[key])))
        rows.append(("no label, at most", str(part["given_class"]["images"]), str(part["draws"]), bounded(part)))
        names = {"one_draw": "no label, one draw", "bits_per_dim": "importance-weighted", "gain": "its gain"}
        for key, name in names.items():
            rows.append((name, str(weighted["images"]), str(weighted["draws"]), _error(weighted[key])))
        rows.append(("Glow, published", "10000", "-", f"{GLOW}"))
        accuracy = part["accuracy"]
        shown.append(text_table(rows))
        shown.append(f"Bayes accuracy: {100 * accuracy['mean']:.2f} % +- {100 * accuracy['error']:.2f}")
    if "samples" in report:
        part = report["samples"]
        rows = [("images", "FID of the classifier's features", "class recognised")]
        rows.append(
            ("training images", _error(part["training_images"], 2), f"{part['classifier_accuracy']:.3f} (test)")
        )
        for row in part["rows"]:
            rows.append((f"guidance {row['guidance']:g}", _error(row["fid"], 2), _error(row["recognised"])))
        shown.append(text_table(rows))
    if "ood" in report:
        rows = [("out-of-distribution images", "bits/dim", *SCORES)]
        for row in report["ood"]["rows"]:
            areas = (f"{row['auroc'][score]['area']:.3f} +- {row['auroc'][score]['error']:.3f}" for score in SCORES)
            rows.append((row["name"], f"{row['bits_per_dim']:.3f}", *areas))
        shown.append(text_table(rows))
    if "solvers" in report:
        rows = [("solver", "batch", "depth", "seconds", "against sequential", "largest error", "settled")]
        for row in report["solvers"]["rows"]:
            time_of = (f"{row['seconds']:.3f}", f"{row['ratio']:.2f}x", f"{row['largest_error']:.1e}")
            time_of = (*time_of, f"{row['settled']} of {row['draws']}")
            rows.append((row["solver"], str(row["batch"]), f"{row['depth']:.1f}", *time_of))
        shown.append(text_table(rows))
    return "\n\n".join(shown)


def bounded(part: Mapping[str, Any]) -> str:
    """The upper bound on bits/dim without a label, with the error of those given the class."""
    return f"{part['without_label_at_most']:.4f} +- {part['given_class']['error']:.4f}"


def _error(value: Mapping[str, float], digits: int = 4) -> str:
    return f"{value['mean']:.{digits}f} +- {value['error']:.{digits}f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    shown = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = shown.add_argument
    add("--workdir", type=Path, required=True, help="folder of a trained run with classes")
    add("--step", type=int, help="step of the checkpoint (default: the newest)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (default: everything)")
    add("--images", type=int, default=10_000, help="test images that are scored (default 10000)")
    add("--bayes-images", type=int, default=10_000, help="of these, scored under every class (default 10000)")
    add("--draws", type=int, default=1, help="draws of the noise for every image (default 1)")
    add("--bound-images", type=int, default=500, help="images of the importance-weighted bound (default 500)")
    add("--bound-draws", type=int, default=16, help="its draws (default 16)")
    add("--samples", type=int, default=2000, help="samples in a set (default 2000)")
    add("--sets", type=int, default=3, help="sets of samples, each of its own seed (default 3)")
    add("--guidance", type=float, nargs="+", default=[0.0], help="guidance weights of the samples (default 0)")
    add("--epochs", type=int, default=8, help="epochs of the classifier's training (default 8)")
    add("--ood-images", type=int, default=1000, help="images of every set (default 1000)")
    add("--solver-batches", type=int, nargs="+", default=[1, 16], help="batch sizes of the solvers (default 1 16)")
    add("--tolerance", type=float, default=1e-6, help="of the iterative solvers (default 1e-6)")
    add("--rounds", type=int, default=3, help="alternating rounds of timing (default 3)")
    add("--batch", type=int, default=250, help="images scored or sampled at a time (default 250)")
    add("--seed", type=int, default=0, help="seed of everything random (default 0)")
    add("--json", type=Path, help="also write the figures as JSON")
    add("--quick", action="store_true", help="few images, draws and rounds")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    options = parser().parse_args(arguments)
    if options.quick:
        few = {
            "images": 20,
            "bayes_images": 10,
            "bound_images": 4,
            "bound_draws": 2,
            "samples": 10,
            "sets": 2,
            "epochs": 1,
        }
        vars(options).update(few, ood_images=10, solver_batches=[2], rounds=1, batch=10)
    config, _, params, step = load_run(options.workdir, step=options.step)
    if not config.flow.num_classes:
        raise SystemExit(f"--workdir must be a run with classes, got {config.name} without")
    train, test = (open_source(config.data, split, flow=config.flow) for split in ("train", "test"))
    if not isinstance(train, ArraySource) or not isinstance(test, ArraySource):
        raise SystemExit("--workdir must be a run on images in memory (data.source idx, npz or digits)")
    run = Benchmark(params, config, train, test, options)
    report: dict[str, Any] = {"name": config.name, "step": step, "parameters": count(params), "seed": options.seed}
    report["options"] = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
    }
    measures = {"likelihood": likelihood, "samples": samples, "ood": ood, "solvers": solvers}
    for name in PARTS:
        if name in options.parts:
            print(f"{name} ...", flush=True)
            report[name] = measures[name](run)
            if options.json is not None:
                write_json(options.json, finite(report))
    print(tables(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
