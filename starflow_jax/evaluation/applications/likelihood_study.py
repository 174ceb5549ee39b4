"""Applications of exact likelihood, on a run on small images, each with numbers and data for plots.

Every function takes a `StudiedRun` and returns an `Outcome`, whose `figures` are plain values and whose `shown` is the
input of `study_plots`. log p(x) sums over equally likely classes, and averages densities over draws.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import bits_per_dim, quantise
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.calibration import Reliability
from starflow_jax.evaluation.applications.filtering import Contaminated, contaminate, filtering, suspicion_scores
from starflow_jax.evaluation.applications.memorisation import Copying, Membership, Nearest, RatioMembership, nearest
from starflow_jax.evaluation.applications.other_images import other_images
from starflow_jax.evaluation.applications.out_of_distribution import Scored, TrainingStatistics, detect, ood_scores
from starflow_jax.evaluation.applications.typicality import typicality_tests
from starflow_jax.evaluation.likelihood.bayes_classifier import bayes_accuracy, classify, log_mean_exp
from starflow_jax.evaluation.likelihood.image_likelihood import log_probs
from starflow_jax.evaluation.likelihood.one_pass_classifier import classify_by_gradient, one_pass_scores
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sampling import sample
from starflow_jax.sampling.ranking import likeliest, log_likelihoods
from starflow_jax.training.step.inputs import condition


@dataclasses.dataclass(frozen=True, eq=False)
class StudiedRun:
    """A run, and its images.

    Attributes:
      params, config: of the run; train, test: its images, in memory.
      key: of all noise; draws: of the dequantisation noise, for every image.
      noise_level: that a noise-conditioned flow reads where it scores images, else None.
    """

    params: Params
    config: ExperimentConfig
    train: ArraySource
    test: ArraySource
    key: jax.Array
    draws: int
    noise_level: float | None = None

    def class_log_probs(self, source: ArraySource, stream: int) -> np.ndarray:
        """log p(x | y) in nats, [draws, n, classes]; without classes [draws, n, 1]; -inf where it overflows."""
        classes = self.config.flow.num_classes or self.config.flow.text_dim
        labels = np.arange(min(classes, source.num_classes) if classes else 1, dtype=np.int32)
        key = jax.random.fold_in(self.key, stream)
        options: dict[str, Any] = {"draws": self.draws, "noise_level": self.noise_level}
        values = log_probs(self.params, self.config.flow, source, key, labels=labels, **options)
        return np.where(np.isfinite(values), values, -np.inf)

    def bits(self, class_log_probs: np.ndarray, source: ArraySource) -> np.ndarray:
        """-log2 p(x) of integer images, the class summed out, float64 [n]."""
        log_p = np.logaddexp.reduce(log_mean_exp(class_log_probs), axis=1) - math.log(class_log_probs.shape[2])
        dims = source.images[0].size
        return np.asarray(bits_per_dim(log_p, dims, source.levels) * dims)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A second run, whose likelihood of the same images is compared.

    Attributes:
      run: with the images, the key and the draws of the studied run.
      train, test: its -log2 p(x) of both splits, the class summed out, float64 [n] and [m].
    """

    run: StudiedRun
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, run: StudiedRun) -> Reference:
        """Scores both splits, with the noise that the studied run has for them."""
        train, test = (run.bits(run.class_log_probs(s, i), s) for i, s in enumerate((run.train, run.test)))
        return cls(run, train, test)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of one application: its name, numbers as plain values, and the data of its plot."""

    name: str
    figures: dict[str, Any]
    shown: Mapping[str, Any]


def posterior(log_p: np.ndarray) -> np.ndarray:
    """p(y | x) of equally likely classes, float64 [n, classes]; uniform for images of no density under any class.

    Args:
      log_p: log p(x | y), [draws, n, classes].
    """
    by_class = log_mean_exp(log_p)
    evidence = np.logaddexp.reduce(by_class, axis=1, keepdims=True)
    finite = np.isfinite(evidence)
    return np.where(finite, np.exp(by_class - np.where(finite, evidence, 0.0)), 1.0 / by_class.shape[1])


def classification(run: StudiedRun, log_p: np.ndarray) -> Outcome:
    """Classification of held-out images by the Bayes rule, the calibration of its probabilities, and the one-pass rule.

    Args:
      log_p: log p(x | y) of `run.test`, [draws, n, classes].
    """
    labels = run.test.labels
    accuracy = bayes_accuracy(log_p, labels)
    read, sure = classify(log_p), np.minimum(posterior(log_p).max(axis=1), 1.0)
    reliability = Reliability.from_predictions(sure, read == labels)
    figures = {
        "accuracy": dataclasses.asdict(accuracy),
        "calibration_error": reliability.expected_error,
        "reliability": reliability.to_dict(),
        "one_pass": one_pass_classification(run, read),
    }
    wrong = np.flatnonzero(read != labels)
    examples = {"wrong": wrong[np.argsort(-sure[wrong])], "least_sure": np.argsort(sure), "read": read, "sure": sure}
    return Outcome("classification", figures, examples | {"reliability": reliability})


def one_pass_classification(run: StudiedRun, by_bayes: np.ndarray) -> dict[str, Any]:
    """Accuracy of the one-pass classifier on held-out images, and its time beside that of the Bayes rule.

    Both are timed on the first images of the test split, at most 256, one draw of the noise each, after they have been
    compiled. An image whose densities or gradients are not finite counts as wrong.

    Args:
      by_bayes: int [n], the classes that the Bayes rule gives.
    """
    key, labels = jax.random.fold_in(run.key, 1), run.test.labels
    options: dict[str, Any] = {"draws": run.draws, "noise_level": run.noise_level}
    log_p, gradients = one_pass_scores(run.params, run.config.flow, run.test, key, **options)
    finite = np.isfinite(log_p).all(axis=0) & np.isfinite(gradients).all(axis=(0, 2))
    classes = min(gradients.shape[2], run.test.num_classes)
    read = np.full(len(labels), -1)
    read[finite] = classify_by_gradient(log_p[:, finite], gradients[:, finite, :classes])
    share = float((read == labels).mean())
    some = run.test.subset(np.arange(min(256, len(run.test))), "timed")
    given = (run.params, run.config.flow, some, key)
    each = np.arange(classes, dtype=np.int32)
    options["draws"] = 1
    return {
        "accuracy": share,
        "error": math.sqrt(share * (1 - share) / len(labels)),
        "correct": int((read == labels).sum()),
        "agreement": float((read == by_bayes).mean()),
        "not_finite": int((~finite).sum()),
        "seconds_per_image": _seconds(lambda: one_pass_scores(*given, **options)) / len(some),
        "bayes_seconds_per_image": _seconds(lambda: log_probs(*given, labels=each, **options)) / len(some),
    }


def _seconds(compute: Callable[[], Any]) -> float:
    """The shortest of three times, after a first call that may compile."""
    compute()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


def out_of_distribution(
    run: StudiedRun, train: np.ndarray, test: np.ndarray, reference: Reference | None = None
) -> Outcome:
    """AUROC of several scores on out-of-distribution images, and the test of typicality on batches of them.

    Args:
      train, test: log p(x | y) of `run.train` and `run.test`; reference: a second run, whose likelihood is one more
        score's background.
    """

    def scored(source: ArraySource, stream: int) -> Scored:
        both = [model.bits(model.class_log_probs(source, stream), source) for model in models]
        return (source, both[0]) if reference is None else (source, both[0], both[1])

    models = [run] if reference is None else [run, reference.run]
    training = TrainingStatistics.from_training(run.train, run.bits(train, run.train))
    bits = run.bits(test, run.test)
    held_out: Scored = (run.test, bits) if reference is None else (run.test, bits, reference.test)
    other_sets = {
        name: scored(source, 100 + index) for index, (name, source) in enumerate(other_images(run.test).items())
    }
    rows = [row.to_dict() for row in detect(training, held_out, other_sets)]
    scores = {"held out": ood_scores(training, *held_out)}
    scores |= {name: ood_scores(training, *pair) for name, pair in other_sets.items()}
    images = {"held out": run.test.images} | {name: pair[0].images for name, pair in other_sets.items()}
    finite = bits[np.isfinite(bits)]
    mean = float(finite.mean()) if len(finite) else math.inf
    tests = typicality_tests(training.mean_bits, bits, {name: pair[1] for name, pair in other_sets.items()})
    figures = {
        "held_out_bits_per_dim": mean / run.test.images[0].size,
        "held_out_not_finite": len(bits) - len(finite),
        "sets": rows,
        "typicality_tests": [dataclasses.asdict(test) for test in tests],
    }
    return Outcome("out_of_distribution", figures, {"scores": scores, "images": images})


def data_filtering(run: StudiedRun, *, mislabelled: float = 0.1, damaged: float = 0.05) -> Outcome:
    """Held-out images with some wrong labels and some damaged ones, ranked by likelihood."""
    contaminated: Contaminated = contaminate(run.test, mislabelled=mislabelled, damaged=damaged)
    log_p = run.class_log_probs(contaminated.source, 2)
    figures = {"examples": len(contaminated.source), "rows": [row.to_dict() for row in filtering(contaminated, log_p)]}
    scores = suspicion_scores(log_p, contaminated.source.labels)
    return Outcome("filtering", figures, {"made": contaminated, "scores": scores, "read": classify(log_p)})


def ranked_sampling(run: StudiedRun, *, candidates: int = 32, keep: int = 8) -> Outcome:
    """Accuracy of an independent classifier on samples of every class, and on the likeliest of them.

    The classifier is a support-vector machine on pixels, fitted on the training images. Ranking reduces the diversity,
    the mean distance (root mean square of pixels) between two selected images of a class.

    Raises:
      ValueError: a flow without classes, or numbers out of range.
    """
    check_integer("candidates", candidates, minimum=2)
    flow = run.config.flow
    classes = min(flow.num_classes or flow.text_dim, run.train.num_classes)
    check(classes > 1, "ranked sampling needs a run with classes, got one without")
    labels = np.repeat(np.arange(classes, dtype=np.int32), candidates)
    samples = sample(run.params, run.config, jax.random.fold_in(run.key, 3), labels, guidance=0.0, temperature=1.0)
    cond = np.asarray(condition(jnp.asarray(labels), flow))
    scores = log_likelihoods(run.params, flow, samples.noisy, cond)
    best = likeliest(scores, candidates, keep)
    worst = likeliest(-scores, candidates, keep)
    right = _judge(run.train)(_levels(run, samples.x)) == labels
    picks = {"all": np.arange(len(labels)), "likeliest": best, "least likely": worst}
    rows = []
    for name, indices in picks.items():
        share = float(right[indices].mean())
        rows.append(
            {
                "kept": name,
                "pictures": len(indices),
                "recognised": share,
                "error": math.sqrt(share * (1 - share) / len(indices)),
                "diversity": _diversity(samples.x[indices].reshape(classes, -1, samples.x[0].size)),
            }
        )
    figures = {"candidates": candidates, "keep": keep, "rows": rows}
    return Outcome("ranked_sampling", figures, {"drawn": samples, "best": best, "worst": worst, "right": right})


def memorisation(
    run: StudiedRun, train: np.ndarray, test: np.ndarray, samples: Any, reference: Reference | None = None
) -> Outcome:
    """Membership by likelihood, and the nearest training image of every sample, in pixels and in latents.

    Args:
      train, test: log p(x | y) of `run.train` and `run.test`; samples: `sampling.Samples` of the run.
      reference: a second run, for membership by likelihood ratio.
    """
    labels = np.where(samples.labels < 0, 0, samples.labels)
    queries = {"samples": (_levels(run, samples.x), labels), "held_out": (run.test.images, run.test.labels)}
    codes = _latents(run, run.train.images, run.train.labels)
    by_pixels: dict[str, Nearest] = {}
    by_latents: dict[str, Nearest] = {}
    classes = run.config.flow.num_classes or run.config.flow.text_dim
    for name, (images, of_images) in queries.items():
        by_pixels[name] = nearest(_signed(run, images), _signed(run, run.train.images))
        # Latents under different conditions are not comparable, so that only images of one class are compared.
        same = of_images[:, None] == run.train.labels if classes else None
        by_latents[name] = nearest(_latents(run, images, of_images), codes, same=same)
    dims = run.train.images[0].size
    bits = (run.bits(train, run.train) / dims, run.bits(test, run.test) / dims)
    figures = {
        "membership": Membership.from_bits(*bits).to_dict(),
        "pixels": Copying.from_distances(by_pixels["samples"].distance, by_pixels["held_out"].distance).to_dict(),
        "latents": Copying.from_distances(by_latents["samples"].distance, by_latents["held_out"].distance).to_dict(),
        "samples": len(labels),
    }
    if reference is not None:
        ratio = RatioMembership.from_bits(*bits, reference.train / dims, reference.test / dims)
        figures["ratio_membership"] = ratio.to_dict()
    examples = {"samples": queries["samples"][0], "by_pixels": by_pixels, "by_latents": by_latents}
    return Outcome("memorisation", figures, examples)


def _judge(train: ArraySource) -> Any:
    """A classifier of integer images, from the first 5,000 training images."""
    from sklearn.svm import SVC

    flat = train.images[:5000].reshape(min(len(train), 5000), -1) / (train.levels - 1)
    model = SVC(C=10.0, gamma="scale").fit(flat, train.labels[:5000])
    return lambda images: model.predict(images.reshape(len(images), -1) / (train.levels - 1))


def _diversity(groups: np.ndarray) -> float:
    """Mean root-mean-square distance of two members of a group, of groups [g, k, D]."""
    distances = []
    for group in groups:
        one, other = np.triu_indices(len(group), 1)
        distances.append(np.sqrt(((group[one] - group[other]) ** 2).mean(axis=1)).mean())
    return float(np.mean(distances))


def _levels(run: StudiedRun, x: np.ndarray) -> np.ndarray:
    """Samples as integer levels, uint8."""
    x = np.nan_to_num(x, nan=-1.0)
    levels = run.train.levels
    if run.config.data.noise == "gaussian":
        return np.rint((np.clip(x, -1, 1) + 1.0) * ((levels - 1) / 2.0)).astype(np.uint8)
    return np.asarray(quantise(x, levels))


def _signed(run: StudiedRun, images: np.ndarray) -> np.ndarray:
    """Integer images as input of the flow without noise, at the centres of levels, float32 in [-1, 1]."""
    levels = run.train.levels
    if run.config.data.noise == "gaussian":
        return (images * (2.0 / (levels - 1)) - 1.0).astype(np.float32)
    return np.asarray(dequantise(images, np.full(images.shape, 0.5, np.float32), levels))


def _latents(run: StudiedRun, images: np.ndarray, labels: np.ndarray, batch: int = 256) -> np.ndarray:
    """z of integer images under their labels, float32 [n, ...]."""
    x, latents = _signed(run, images), []
    batch = min(batch, len(x))
    for first in range(0, len(x), batch):
        rows = np.resize(np.arange(first, min(first + batch, len(x))), batch)
        given = (x[rows], np.asarray(labels[rows], np.int32), run.noise_level)
        latents.append(np.asarray(_z(run.config.flow, run.params, *given)))
    return np.concatenate(latents)[: len(x)]


@functools.partial(jax.jit, static_argnums=0)
def _z(config: FlowConfig, params: Params, x: jax.Array, labels: jax.Array, noise_level: float | None) -> jax.Array:
    flow = merge(abstract(config)[0], params)
    return flow.forward(x, condition(labels, config), noise_level=noise_level).z
