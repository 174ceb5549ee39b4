"""Samples of images: draw noise, invert the flow, remove the training noise, round to pixels."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from starflow_jax.core.choices import ParameterForm
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import quantise
from starflow_jax.flows import Flow
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.order import AnyArray
from starflow_jax.flows.parameters import Params, abstract, merge, split
from starflow_jax.media import to_uint8
from starflow_jax.models.autoencoders import decode_by, decode_latents
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.sampling.denoising import DENOISE_STREAM, Denoising
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.options import SamplingOptions, Settings
from starflow_jax.sampling.sampling_report import SampleReport, report_on
from starflow_jax.sharding.layout import Layout, gathered, placed, spread, tree_layout
from starflow_jax.solvers import AnySolver, Inversion, OnePass, inverse
from starflow_jax.training.step.inputs import condition


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The result of `sample`.

    Attributes:
      images: uint8 [n, H, W, C], 0..255; for a model of dequantised data the integer levels, stretched to that range.
      x: float32 [n, H, W, C], denoised samples in the units of the flow, about [-1, 1].
      noisy: float32 [n, H, W, C], the samples before denoising, which the likelihood of the flow is defined on.
      labels: int32 [n], -1 for none.
      report: cost and convergence.
    """

    images: np.ndarray
    x: np.ndarray
    noisy: np.ndarray
    labels: np.ndarray
    report: SampleReport


@dataclasses.dataclass(frozen=True, eq=False)
class ImageOptions(SamplingOptions):
    """Options of `sample`.

    Attributes:
      text: float32 [n, L, text_dim], states of captions, in place of labels.
      null: float32 [1, L, text_dim], states of the empty caption, the unconditional half of guidance.
      autoencoder: decodes the samples of a model of latents; None reads the one that the configuration names.
    """

    text: np.ndarray | None = None
    null: np.ndarray | None = None
    autoencoder: RunAutoencoder | None = None


def sample(
    flow: Flow | Params,
    config: ExperimentConfig,
    key: PRNGKeyArray,
    labels: Sequence[int] | Int[np.ndarray, "B"],
    options: ImageOptions | None = None,
    **changes: Any,
) -> Samples:
    """Samples one image for every label.

    Image i depends on the key, on i and on its label alone; the batch size changes the speed, and the samples only
    within the tolerance of a solver that stops for a whole batch. One program is compiled for each batch size and each
    combination of solver, guidance and denoiser, and reused for other keys, labels, weights and temperatures.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: the experiment that the flow was trained in.
      key: of the noise.
      labels: integers [n], -1 for an unconditional image; all -1 with `text`.
      options: see `ImageOptions`.
      **changes: fields of `ImageOptions`, in place of those of `options`.

    Raises:
      ValueError: see `check_request`.
    """
    options = dataclasses.replace(options or ImageOptions(), **changes)
    labels = np.asarray(labels)
    settings = check_request(config, labels, options)
    labels = labels.astype(np.int32)  # after the check, whose message states the number that was passed
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count, batch_size = len(labels), min(options.batch_size, len(labels))
    layout = tree_layout(params)
    kind = _Kind(
        config.flow,
        options.chosen_solver(config),
        settings.guidance > 0,
        settings.annealed_guidance,
        settings.attention_temperature != 1.0,
        settings.denoising,
        config.data.noise_std,
        settings.parameters,
        layout,
    )
    key, scalars = spread(layout, (key, settings.scalars()))
    conditions = labels if options.text is None else np.asarray(options.text, np.float32)
    null = spread(layout, None if options.null is None else np.asarray(options.null, np.float32))
    # A short last batch is padded with copies of its rows, so that residuals over the batch are those of its samples.
    batches = [
        np.resize(np.arange(first, min(first + batch_size, count)), batch_size) for first in range(0, count, batch_size)
    ]
    rows = [spread(layout, (index.astype(np.int32), conditions[index])) for index in batches]
    x, noisy, reports, seconds = _draw_batches(kind, params, key, rows, null, scalars, options.learned)
    finite = np.isfinite(x[:count]).all(axis=(1, 2, 3))
    report = report_on(
        reports,
        count=count,
        batch_size=batch_size,
        seconds=seconds[1],
        compile_seconds=seconds[0],
        non_finite=int(count - finite.sum()),
    )
    pixels = to_pixels(x[:count], config.data, options.autoencoder)
    return Samples(pixels, x[:count], noisy[:count], labels, report)


def _draw_batches(
    kind: _Kind,
    params: Params,
    key: PRNGKeyArray,
    rows: Sequence[tuple[Int[AnyArray, "B"], Shaped[AnyArray, "B *rest"]]],
    null: Float[AnyArray, "1 L E"] | None,
    scalars: dict[str, Float[Array, ""]],
    learned: LearnedParams | None,
) -> tuple[np.ndarray, np.ndarray, list[Any], tuple[float, float]]:
    """Samples and noisy samples of all batches, the solver's reports, and the seconds of compiling and of sampling."""
    start = time.perf_counter()
    # Compiled ahead of its first run, so that its time is measured separately; JAX caches it for the next call.
    program = _draw.lower(kind, params, key, *rows[0], null, scalars, learned).compile()
    compiled = time.perf_counter()
    denoised, noisy, reports = [], [], []
    for index, given in rows:
        clean, before, report = program(params, key, index, given, null, scalars, learned)
        denoised.append(np.asarray(clean))
        noisy.append(np.asarray(before))
        reports.append(jax.device_get(report))
    seconds = (compiled - start, time.perf_counter() - compiled)
    return np.concatenate(denoised), np.concatenate(noisy), reports, seconds


def check_request(
    config: ExperimentConfig, labels: Int[np.ndarray, "..."], options: ImageOptions | None = None, **changes: Any
) -> Settings:
    """The settings of a call of `sample`, whose arguments these are.

    Raises:
      ValueError: naming the argument that is out of range or does not fit the model.
    """
    options = dataclasses.replace(options or ImageOptions(), **changes)
    check(labels.ndim == 1 and len(labels) > 0, f"labels must be [n] with n above 0, got {list(labels.shape)}")
    flow, text, null = config.flow, options.text, options.null
    classes = flow.num_classes or flow.text_dim
    lowest, highest = int(labels.min()), int(labels.max())
    if not classes:
        check(highest < 0, f"class must be none for a model without classes, got {highest}")
    wrong = highest if highest >= classes else lowest
    check(lowest >= -1 and highest < max(classes, 1), f"class must be 0 to {classes - 1}, got {wrong}")
    if text is not None:
        check(highest < 0, f"labels must be -1 where there is text, got {highest}")
        check(
            text.ndim == 3 and text.shape[::2] == (len(labels), flow.text_dim),
            f"text must be [{len(labels)}, L, {flow.text_dim}], got {list(text.shape)}",
        )
        check(
            null is None or null.shape == (1, *text.shape[1:]),
            f"null must be [1, {text.shape[1]}, {flow.text_dim}], got {null if null is None else list(null.shape)}",
        )
    settings = options.settings(config)
    guidance = settings.guidance
    if guidance > 0:
        check(
            flow.family == "tarflow" or flow.text_dim > 0,
            f"guidance must be 0 for a model that reads no condition, got {guidance}",
        )
        check(
            highest >= 0 or settings.attention_temperature != 1.0 or text is not None,
            "guidance of unconditional images needs an attention_temperature other than 1, the only difference of its "
            "two predictions, got guidance {guidance}",
        )
    return settings


def class_labels(config: ExperimentConfig, count: int) -> Int[np.ndarray, "B"]:
    """Labels int32 [count] that take the classes in turn; -1 for a model without classes."""
    classes = config.flow.num_classes or config.flow.text_dim
    return (np.arange(count) % classes if classes else np.full(count, -1)).astype(np.int32)


def to_pixels(
    x: Float[np.ndarray, "*B rows columns c"], data: DataConfig, autoencoder: RunAutoencoder | None = None
) -> UInt8[np.ndarray, "*b H W C"]:
    """Images uint8, 0..255, from samples in the units of the flow; NaN becomes black.

    Latents are decoded by `autoencoder`; where that is None, `data.decoder`, else the autoencoder of the training, else
    the one in the folder of the precomputed latents is read. Samples of a model of dequantised data are quantised to
    the levels of the data, which are stretched to 0..255. Those of vectors are pictures of their values in [-1, 1].
    """
    decoder = data.decoder or data.autoencoder
    if autoencoder is not None:
        x = autoencoder.decode(np.nan_to_num(x))
    elif decoder is not None:
        x = decode_by(Path(decoder), np.nan_to_num(x))
    elif data.traits.latents:
        assert data.path is not None  # DataConfig checks it
        x = decode_latents(np.nan_to_num(x), Path(data.path))
    x = np.clip(np.nan_to_num(x, nan=-1.0), -1.0, 1.0)
    if data.noise != "uniform":
        return to_uint8(x)
    levels = data.pixel_levels
    return np.rint(quantise(x, levels) * (255.0 / (levels - 1))).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The static argument of the compiled program."""

    flow: FlowConfig
    solver: AnySolver
    guided: bool
    annealed: bool
    tempered: bool
    denoising: Denoising
    noise_std: float
    parameters: ParameterForm
    layout: Layout | None


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    kind: _Kind,
    params: Params,
    key: PRNGKeyArray,
    index: jax.Array,
    given: jax.Array,
    null: jax.Array | None,
    scalars: dict[str, jax.Array],
    learned: LearnedParams | None,
) -> tuple[jax.Array, jax.Array, tuple[Any, ...]]:
    """Images [B, H, W, C] after and before denoising, and the solver's reports.

    Args:
      index: int32 [B], indices of the images, which determine their noise.
      given: labels int32 [B], or text states [B, L, text_dim].
    """
    flow = merge(abstract(kind.flow, kind.layout)[0], params)
    network = None if learned is None else learned.module(kind.flow, kind.layout)
    if kind.parameters == "ready":
        flow = ready_for_inference(flow)
        network = None if network is None else ready_for_inference(network)
    shape = (*kind.flow.image_shape, kind.flow.channels)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(keys) * scalars["temperature"]
    z = placed(kind.layout, z, "batch")
    cond = given if given.ndim == 3 else condition(given, kind.flow)
    guidance = None
    if kind.guided:
        factors = (scalars["weight"], scalars["attention_temperature"])
        guidance = make_guidance(kind.flow.family, cond, *factors, null, annealed=kind.annealed)
    tempered = kind.tempered and kind.flow.family == "starflow"
    result: Inversion = inverse(
        flow,
        z,
        cond,
        solver=kind.solver,
        guidance=guidance,
        temperature=scalars["attention_temperature"] if tempered else None,
        learned=network,
        ready=False,  # as they are now
    )
    denoising = kind.denoising
    if denoising.method in ("score", "learned") and isinstance(kind.solver, OnePass):
        assert result.clean is not None  # the solver has a network, which estimates data without noise, too
        return gathered(kind.layout, (result.clean, result.x, result.reports))
    if (exact := denoising.flow_config(kind.flow)) != kind.flow:
        flow = merge(abstract(exact, kind.layout)[0], params)

    def noise(level: jax.Array) -> jax.Array:
        """The noise of a step of the images' denoising."""
        streams = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, DENOISE_STREAM), level))(keys)
        return jax.vmap(lambda k: jax.random.normal(k, shape))(streams)

    clean = denoising.apply(flow, result.x, cond, kind.noise_std, scalars.get("denoise_levels"), noise)
    return gathered(kind.layout, (clean, result.x, result.reports))
