"""Generates images of a run for several guidance weights, and measures them against real images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import write_json
from starflow_jax.core.request_errors import RequestError
from starflow_jax.evaluation.likelihood.comparison import Scores
from starflow_jax.evaluation.likelihood.run_scores import score_params
from starflow_jax.evaluation.likelihood.scored_source import OnSkipped, check_on_pixels, ignore_skipped
from starflow_jax.evaluation.samples.features.chunk_folder import ChunkFolder
from starflow_jax.evaluation.samples.features.feature_network import named_function
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.generator_setup import chunk_folder, open_generator
from starflow_jax.evaluation.samples.guidance_sweep import generate_missing, stored_metrics
from starflow_jax.evaluation.samples.metrics.metric import compute_metrics, metric_spec
from starflow_jax.evaluation.samples.metrics.metric_report import plot_metrics, write_csv
from starflow_jax.evaluation.samples.networks import open_feature_network
from starflow_jax.evaluation.samples.reference_sources import open_references
from starflow_jax.evaluation.samples.reference_statistics import reference_statistics
from starflow_jax.evaluation.samples.sample_grids import class_columns, enlargement
from starflow_jax.evaluation.samples.sample_quality_request import BITS, SampleQualityRequest
from starflow_jax.media import image_grid, write_png
from starflow_jax.sharding.layout import Layout
from starflow_jax.training import load_run
from starflow_jax.training.checkpoints.workdir import in_use

_PREVIEW = 64  # images in the PNG file of every guidance


@dataclasses.dataclass(frozen=True, eq=False)
class SampleQuality:
    """Metrics of generated images.

    Attributes:
      request: that was answered; config: of the run; step: of the checkpoint; ema: whether its moving average was used.
      network: name of the feature network; reference, reference_count: the real images; width: of their features.
      plan: everything that determines the generated images; rows: metrics for every guidance.
      baseline: metrics of other real images; None where there are none.
      bits: bits/dim of held-out images, where the request has "bpd".
    """

    request: SampleQualityRequest
    config: ExperimentConfig
    step: int
    ema: bool
    network: str
    reference: str
    reference_count: int
    width: int
    plan: dict[str, Any]
    rows: list[dict[str, Any]]
    baseline: dict[str, Any] | None
    bits: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "workdir": str(self.request.workdir),
            "step": self.step,
            "ema": self.ema,
            "features": self.network,
            "reference": {"name": self.reference, "pictures": self.reference_count},
            "plan": self.plan,
            "rows": self.rows,
            "floor": self.baseline,
            "bits_per_dim": None if self.bits is None else dataclasses.asdict(self.bits),
        }

    def warnings(self) -> list[str]:
        """Reasons why the metrics may be unreliable, one sentence for each."""
        warnings = []
        non_finite = sum(row["non_finite"] for row in self.rows)
        if non_finite:
            warnings.append(f"{non_finite} images contain values that are not finite, and count as black images")
        unconverged = sum(row["unconverged"] for row in self.rows)
        if unconverged:
            warnings.append(
                f"{unconverged} chunks of tokens did not converge; a lower --tolerance may change the results"
            )
        count = min(self.request.num_samples, self.reference_count)
        if "fid" in self.request.metrics and count <= 10 * self.width:
            warnings.append(
                f"FID of {count} images with {self.width} features is biased upwards; compare it only with FIDs of "
                "equally many images"
            )
        return warnings


def measure_samples(
    request: SampleQualityRequest,
    *,
    layout: Layout | None = None,
    on_skipped: OnSkipped = ignore_skipped,
    warn: Callable[[str], None] = lambda text: None,
) -> SampleQuality | None:
    """Generates the images that are not stored in the request's folder yet, and computes the metrics of all.

    Every process of a run calls this; the folder is stored by process 0.

    Args:
      layout: of the devices, None for one; on_skipped: called with the real images that could not be read.
      warn: called with sentences on progress and on captions that are left out.

    Returns:
      None on processes other than process 0.

    Raises:
      RequestError: a request that the run does not support.
      ValueError: see `load_run`, `open_generator`, `open_references`, `open_feature_network`, `named_function`,
        `chunk_folder`, `lock_folder` and `reference_statistics`.
    """
    config, _, params, step = load_run(
        request.workdir, ema=request.ema, layout=layout, step=request.step, quantise=request.quantise
    )
    generator, weights = open_generator(request, config, params, step, warn)
    config = generator.config
    reference, other = open_references(request, config, on_skipped, generator.autoencoder)
    _check_bits(request, config)
    network = open_feature_network(request, config, layout, reference)
    pairs, pairs_digest = (None, None) if request.clip is None else named_function(request.clip)
    shape, total = tuple(reference[0]["image"].shape), request.num_samples
    folder = chunk_folder(request, generator, step, network, pairs, pairs_digest, shape)
    with _computing(folder):
        real, others = (
            None if source is None else reference_statistics(folder.path, source, network, generator.batch_size, shape)
            for source in (reference, other)
        )
        for weight in weights:
            on_chunk = _progress(folder, weight, total, warn)
            generate_missing(folder, generator, network, weight, total, pairs=pairs, on_chunk=on_chunk)
    bits = None
    if BITS in request.metrics:
        bits = score_params(request, config, params, step, on_skipped=on_skipped).scores
    if real is None:
        return None
    metrics, ema = request.sample_metrics, bool(config.train.ema) and request.ema
    return SampleQuality(
        request,
        config,
        step,
        ema,
        network.name,
        reference.name,
        real.count,
        len(real.moments.mean),
        dict(folder.plan),
        [stored_metrics(folder, weight, total, real, metrics, pairs=pairs is not None) for weight in weights],
        None if others is None or other is None else _baseline(other.name, others, real, metrics),
        bits,
    )


def write_sample_quality(result: SampleQuality) -> None:
    """Writes quality.json, quality.csv and quality.png into the folder of the request."""
    out, request = result.request.folder, result.request
    write_json(out / "quality.json", result.to_dict())
    write_csv(out / "quality.csv", result.rows)
    title = f"{result.config.name}, {request.num_samples} images, {result.network}"
    plot_metrics(out / "quality.png", result.rows, result.baseline, request.sample_metrics, title)


def _check_bits(request: SampleQualityRequest, config: ExperimentConfig) -> None:
    if BITS not in request.metrics:
        return
    check_on_pixels(config)
    if config.data.text_encoder is not None:
        raise RequestError("{metrics} bpd needs a run without captions; starflow score scores runs with captions")


def _baseline(name: str, others: FeatureStatistics, real: FeatureStatistics, metrics: list[str]) -> dict[str, Any]:
    """Metrics of other real images: the values of samples that are indistinguishable from real images."""
    of_images = [metric for metric in metrics if metric_spec(metric).needs != "captions"]
    return {"source": f"real: {name}", "samples": others.count, **compute_metrics(others, real, of_images)}


@contextmanager
def _computing(folder: ChunkFolder) -> Iterator[None]:
    """Locks the folder; an interruption is reported with the remark that stored features are kept."""
    with ExitStack() as stack:
        lock_folder(folder, stack)
        try:
            yield
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(
                "finished samples are stored, and the same command continues from them"
            ) from interrupt


def lock_folder(folder: ChunkFolder, stack: ExitStack) -> None:
    """Claims the folder for its plan, and locks it until the stack is closed; only process 0 does this.

    Raises:
      ValueError: a folder with another plan or with other files, or one that is in use.
    """
    if jax.process_index() != 0:
        return
    folder.claim()
    stack.enter_context(in_use(folder.path, "folder", "samples"))
    folder.remove_temporary_files()


def _progress(folder: ChunkFolder, guidance: float, total: int, warn: Callable[[str], None]) -> Callable[..., None]:
    """A callback that reports every chunk, and writes the first images of a guidance, if finite, as a PNG file."""
    start = time.perf_counter()

    def on_chunk(index: int, samples: Any) -> None:
        if jax.process_index() != 0:
            return
        done = min(total, (index + 1) * folder.size)
        warn(f"guidance {guidance:g}: {done} of {total} images, {time.perf_counter() - start:.0f} s")
        if index == 0 and samples.report.non_finite == 0:
            images: np.ndarray = samples.images[:_PREVIEW]
            columns = class_columns(int(samples.labels.max()) + 1, len(images))
            images = images[: len(images) // (columns or 1) * (columns or 1)]
            path = folder.path / f"pictures-{guidance:g}.png"
            write_png(path, image_grid(images, columns), scale=enlargement(*images.shape[1:3]))

    return on_chunk
