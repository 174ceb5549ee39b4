"""Noise to pictures: draw noise, invert the flow, remove the training noise, round to pixels."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.choices import Denoise, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer, check_real
from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.data import quantise
from starflow_jax.data.sources.digits import digits
from starflow_jax.flows import Flow, learned_denoise, score_denoise
from starflow_jax.flows.guidance import guidance_of
from starflow_jax.flows.parameters import Params, abstract, merge, split
from starflow_jax.media import to_uint8
from starflow_jax.models.autoencoders import decode_by, decode_latents
from starflow_jax.sampling.sampling_report import SampleReport, report_on
from starflow_jax.sharding.layout import Layout, gathered, layout_of, placed, spread
from starflow_jax.solvers import AnySolver, Inversion, inverse, named_solver
from starflow_jax.training.step.inputs import condition


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """What `sample` returns.

    Attributes:
      images: uint8 [n, H, W, C], 0..255; of a model of dequantised data the integer levels, stretched.
      x: float32 [n, H, W, C], what the flow (and denoiser) gave, about [-1, 1].
      noisy: float32 [n, H, W, C], what the flow gave, before its noise was removed: the flow's likelihood speaks of it.
      labels: int32 [n], -1 where there is none.
      report: how it went.
    """

    images: np.ndarray
    x: np.ndarray
    noisy: np.ndarray
    labels: np.ndarray
    report: SampleReport


def sample(
    flow: Flow | Params,
    config: ExperimentConfig,
    key: jax.Array,
    labels: Sequence[int] | np.ndarray,
    *,
    text: np.ndarray | None = None,
    null: np.ndarray | None = None,
    solver: AnySolver | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    attention_temperature: float = 1.0,
    denoise: Denoise | None = None,
    batch_size: int = 64,
) -> Samples:
    """Draws one picture for every label.

    Picture i depends on the key, its place i and its label alone: the batch size changes speed, and what a
    batch-wide stopping rule may change within its tolerance. One program is compiled for a batch size and a
    kind of call and kept; keys, labels, weights and temperatures do not recompile it. Arguments left None
    take the value of `config.sample`.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: what the flow was trained as.
      key: of the noise.
      labels: integers [n], -1 for an unconditional picture; all -1 with `text`.
      text: states [n, L, text_dim] of captions, instead of labels; null: [1, L, text_dim], of the empty caption, which
        guidance leads away from.
      solver: how blocks are inverted.
      guidance: weight w >= 0 of classifier-free guidance, 0 for none.
      temperature: factor of the noise z.
      attention_temperature: divides attention logits: in TARFlow of the unconditional half of a guided pair,
        in STARFlow everywhere.
      denoise: what removes the training noise.
      batch_size: pictures drawn together; the last batch is filled up with copies.

    Raises:
      ValueError: see `check_request`.
    """
    options = config.sample
    guidance = options.guidance if guidance is None else guidance
    temperature = options.temperature if temperature is None else temperature
    denoise = options.denoise if denoise is None else denoise
    solver = default_solver(config) if solver is None else solver
    labels = np.asarray(labels)
    check_request(
        config,
        labels,
        guidance=guidance,
        temperature=temperature,
        attention_temperature=attention_temperature,
        denoise=denoise,
        batch_size=batch_size,
        text=text,
        null=null,
    )
    labels = labels.astype(np.int32)  # after the check, which says which number has no class
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count, batch_size = len(labels), min(batch_size, len(labels))
    kind = _Kind(
        config.flow,
        solver,
        guidance > 0,
        attention_temperature != 1.0,
        denoise,
        config.data.noise_std,
        layout := layout_of(params),
    )
    numbers = {"weight": guidance, "temperature": temperature, "attention_temperature": attention_temperature}
    scalars = {name: jnp.float32(value) for name, value in numbers.items()}
    # The filling repeats rows of the same batch: a residual over the batch then still speaks of its members.
    batches = [
        np.resize(np.arange(first, min(first + batch_size, count)), batch_size) for first in range(0, count, batch_size)
    ]
    begun = time.perf_counter()
    # Built ahead of its first run, so that its time is told apart from drawing; JAX keeps it for the next call.
    key, scalars = spread(layout, (key, scalars))
    conditions = labels if text is None else np.asarray(text, np.float32)
    away = spread(layout, None if null is None else np.asarray(null, np.float32))
    rows = [spread(layout, (index.astype(np.int32), conditions[index])) for index in batches]
    program = _draw.lower(kind, params, key, *rows[0], away, scalars).compile()
    compiled = time.perf_counter()
    drawn, noisy, outcomes = [], [], []
    for places, given in rows:
        pictures, before, reports = program(params, key, places, given, away, scalars)
        drawn.append(np.asarray(pictures))
        noisy.append(np.asarray(before))
        outcomes.append(jax.device_get(reports))
    done = time.perf_counter()

    x = np.concatenate(drawn)[:count]
    finite = np.isfinite(x).all(axis=(1, 2, 3))
    report = report_on(
        outcomes,
        count=count,
        batch_size=batch_size,
        seconds=done - compiled,
        compile_seconds=compiled - begun,
        non_finite=int(count - finite.sum()),
    )
    return Samples(to_pixels(x, config.data), x, np.concatenate(noisy)[:count], labels, report)


def check_request(
    config: ExperimentConfig,
    labels: np.ndarray,
    *,
    guidance: float,
    temperature: float,
    attention_temperature: float,
    denoise: str,
    batch_size: int,
    text: np.ndarray | None = None,
    null: np.ndarray | None = None,
) -> None:
    """Raises ValueError, naming the field, where a flow cannot be sampled as asked."""
    check(labels.ndim == 1 and len(labels) > 0, f"labels must be [n] with n above 0, got {list(labels.shape)}")
    flow = config.flow
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
    check_real("guidance", guidance, minimum=0.0)
    check_real("temperature", temperature, minimum=0.0)
    check_real("attention_temperature", attention_temperature)
    check(attention_temperature > 0, f"attention_temperature must be above 0, got {attention_temperature}")
    check_integer("batch_size", batch_size, minimum=1)
    if guidance > 0:
        check(
            flow.family == "tarflow" or flow.text_dim > 0,
            f"guidance must be 0 for a model that reads no condition, got {guidance}",
        )
        check(
            highest >= 0 or attention_temperature != 1.0 or text is not None,
            "guidance of unconditional pictures needs attention_temperature other than 1 "
            f"(there is nothing else to guide by), got guidance {guidance}",
        )
    check_denoise(config, denoise)


def check_denoise(config: ExperimentConfig, denoise: str) -> None:
    """Raises ValueError where the training noise of a model cannot be removed as asked."""
    check_choice("denoise", denoise, choices(Denoise))
    check(
        denoise == "none" or config.data.noise == "gaussian",
        f"denoise must be 'none' for a model trained without Gaussian noise, got {denoise!r}",
    )
    check(
        denoise != "learned" or config.flow.denoiser is not None,
        "denoise must be 'none' or 'score' for a model without a learned denoiser, got 'learned'",
    )


def default_solver(config: ExperimentConfig) -> AnySolver:
    """The solver that `config.sample` names; ValueError for "auto", which needs a calibration."""
    return named_solver(config.sample.solver, config.flow)


def class_labels(config: ExperimentConfig, count: int) -> np.ndarray:
    """Labels int32 [count] that take the classes in turn; -1 for a model without classes."""
    classes = config.flow.num_classes or config.flow.text_dim
    return (np.arange(count) % classes if classes else np.full(count, -1)).astype(np.int32)


def to_pixels(x: np.ndarray, data: DataConfig) -> np.ndarray:
    """Pictures as they are looked at, uint8 0..255, of data in the flow's units; NaN becomes black.

    Latents are decoded by `data.decoder`, else by the autoencoder of the training, or the one that lies beside those
    that were computed before.
    A model of dequantised data speaks of integer levels: they are found again and stretched over 0..255.
    """
    decoder = data.decoder or data.autoencoder
    if decoder is not None:
        x = decode_by(Path(decoder), np.nan_to_num(x))
    elif data.source == "latents":
        assert data.path is not None  # DataConfig checks it
        x = decode_latents(np.nan_to_num(x), Path(data.path))
    x = np.clip(np.nan_to_num(x, nan=-1.0), -1.0, 1.0)
    if data.noise == "gaussian":
        return to_uint8(x)
    # An npz source holds bytes, and may have gone elsewhere since the training.
    levels = digits("train").levels if data.source in ("digits", "moving_digits") else 256
    return np.rint(quantise(x, levels) * (255.0 / (levels - 1))).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What decides a compiled program."""

    flow: FlowConfig
    solver: AnySolver
    guided: bool
    tempered: bool
    denoise: Denoise
    noise_std: float
    layout: Layout | None


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    kind: _Kind,
    params: Params,
    key: jax.Array,
    index: jax.Array,
    given: jax.Array,
    null: jax.Array | None,
    scalars: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, tuple[Any, ...]]:
    """Pictures [B, H, W, C], these before denoising, the solver's reports.

    index: places int32 [B]; given: labels int32 [B], or text states [B, L, D].
    """
    flow = merge(abstract(kind.flow, kind.layout)[0], params)
    shape = (*kind.flow.image_shape, kind.flow.channels)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(keys) * scalars["temperature"]
    z = placed(kind.layout, z, "batch")
    cond = given if given.ndim == 3 else condition(given, kind.flow)
    guidance = None
    if kind.guided:
        guidance = guidance_of(kind.flow.family, cond, scalars["weight"], scalars["attention_temperature"], null)
    tempered = kind.tempered and kind.flow.family == "starflow"
    result: Inversion = inverse(
        flow,
        z,
        cond,
        solver=kind.solver,
        guidance=guidance,
        temperature=scalars["attention_temperature"] if tempered else None,
    )
    drawn = result.x
    if kind.denoise == "score":
        drawn = score_denoise(flow, drawn, cond, kind.noise_std)
    elif kind.denoise == "learned":
        drawn = learned_denoise(flow, drawn, cond, kind.noise_std)
    return gathered(kind.layout, (drawn, result.x, result.reports))
