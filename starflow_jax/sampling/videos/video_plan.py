"""Checks calls that sample videos before any work, and resolves options that are None."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from starflow_jax.core.choices import ParameterForm
from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.models.text.templates import EXTEND, prefixed
from starflow_jax.sampling.denoising import Denoising
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.options import SamplingOptions
from starflow_jax.sharding.layout import Layout
from starflow_jax.solvers import AnySolver, SlidingWindow
from starflow_jax.training.step.frozen_text import FrozenText, load_text, prompts

MAX_PLACES = 2**30


@dataclasses.dataclass(frozen=True)
class VideoKind:
    """The static argument of the compiled program.

    Attributes:
      flow, noise_std: of the model; solver: as in `VideoOptions`; denoising: how the training noise is removed.
      frames, size: T and (H, W) of the videos.
      window: the sliding window of videos that are longer, else None.
      guided, tempered: whether the program applies guidance and attention temperature.
      parameters: as in `VideoOptions`.
      layout: of the parameters; None for one device.
    """

    flow: FlowConfig
    noise_std: float
    solver: AnySolver
    denoising: Denoising
    frames: int
    size: tuple[int, int]
    window: SlidingWindow | None
    guided: bool
    tempered: bool
    parameters: ParameterForm = "ready"
    layout: Layout | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class VideoPlan:
    """n videos to sample, checked, with all options resolved.

    Attributes:
      config: of the model; kind: determines the compiled program.
      captions: n captions; places: int32 [n] or uint32 [n, k], integers that determine the noise (`frame_noise`).
      text: float32 [n, L, V], states of the captions; null: float32 [1, L, V], of the empty one.
      later_text: the states for windows after the first; None for `text`.
      given: float32 [1 or n, P, H, W, C], clean frames at the beginning, about [-1, 1] or latents; None for none.
      given_pixels: uint8 [1 or n, Q, H', W', C'], the frames that latents in `given` were encoded from; None for
        a model of pixels.
      scalars: "weight" (guidance), "temperature", "attention_temperature": float32 []; with an iterative denoiser
        "denoise_levels": int32 [].
      batch_size: videos at a time.
      autoencoder: decodes the samples of a model of latents; None reads the one that the configuration names.
      learned: the learned inverse, for solvers that start from its estimates.
    """

    config: ExperimentConfig
    kind: VideoKind
    captions: tuple[str, ...]
    places: np.ndarray
    text: np.ndarray
    null: np.ndarray
    later_text: np.ndarray | None
    given: np.ndarray | None
    scalars: dict[str, jax.Array]
    batch_size: int
    given_pixels: np.ndarray | None = None
    autoencoder: RunAutoencoder | None = None
    learned: LearnedParams | None = None

    @property
    def given_frames(self) -> int:
        """P."""
        return 0 if self.given is None else self.given.shape[1]


def default_window(frames: int) -> SlidingWindow:
    """Windows of `frames` frames, about three quarters of them context (16 of 21 in the released models)."""
    return SlidingWindow(frames, min(frames - 1, max(1, round(0.75 * frames))))


@dataclasses.dataclass(frozen=True, eq=False)
class VideoOptions(SamplingOptions):
    """Options of `plan_videos`, `generate` and `stream`.

    Attributes:
      batch_size: videos sampled together; the last batch is padded with copies.
      frames: T, given frames included; None for as many as trained on.
      size: rows and columns; None for those trained on.
      prefix: clean frames [P, H, W, C] or [1 or n, P, H, W, C] with which the videos begin, uint8 or float in [-1, 1],
        or float latents.
      prefix_pixels: the frames that `prefix` was encoded from, uint8 [Q, H', W', C'] or [1 or n, Q, H', W', C'].
      window: the sliding window of videos longer than `window.frames`; None for `default_window` of the trained number.
      places: n integers below 2^30 that determine the noise of the videos, or n rows of k integers below 2^32; None
        for 0 .. n - 1.
      reader: the text encoder; None loads the one that the configuration names.
      aspect, fps: named by the templates of captions (`frozen_text.prompts`).
      autoencoder: decodes the samples of a model of latents; None reads the one that the configuration names.
    """

    batch_size: int = 8
    frames: int | None = None
    size: tuple[int, int] | None = None
    prefix: np.ndarray | None = None
    prefix_pixels: np.ndarray | None = None
    window: SlidingWindow | None = None
    places: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None = None
    reader: FrozenText | None = None
    aspect: str | None = None
    fps: float | None = None
    autoencoder: RunAutoencoder | None = None


def plan_videos(
    config: ExperimentConfig, captions: Sequence[str], options: VideoOptions | None = None, **changes: Any
) -> VideoPlan:
    """Checks a call that samples one video for every caption, and resolves options that are None.

    Args:
      config: the experiment that the flow was trained in.
      captions: n captions, empty for no condition.
      options: see `VideoOptions`.
      **changes: fields of `VideoOptions`, in place of those of `options`.

    Raises:
      ValueError: naming the option that is out of range or does not fit the model.
    """
    options = dataclasses.replace(options or VideoOptions(), **changes)
    flow, data = config.flow, config.data
    check(data.frames > 0, f"videos need a model trained on clips, got data.source {data.source!r}")
    check(
        not isinstance(captions, str) and len(captions) > 0,
        f"captions must be a sequence of at least one caption, got {captions!r}",
    )
    frames = data.frames if options.frames is None else options.frames
    check_integer("frames", frames, minimum=1)
    rows, columns = size = _checked_size(flow, options.size)
    settings = options.settings(config)
    window = options.window
    window = default_window(data.frames) if window is None and data.frames > 1 else window
    window = window if window is not None and frames > window.frames else None
    check(window is None or flow.temporal_causal, f"frames must be at most {data.frames} for this model, got {frames}")
    reader = caption_reader(config) if options.reader is None else options.reader
    template = {"size": (int(rows), int(columns)), "aspect": options.aspect, "fps": options.fps}
    given, count = None, len(captions)
    if options.prefix is not None:
        given = _checked_given(config, options.prefix, count, frames, size, window)
    pixels = options.prefix_pixels
    return VideoPlan(
        config=config,
        kind=VideoKind(
            flow=flow,
            noise_std=data.noise_std,
            solver=options.chosen_solver(config),
            denoising=settings.denoising,
            frames=int(frames),
            size=(int(rows), int(columns)),
            window=window,
            guided=settings.guidance > 0,
            tempered=settings.attention_temperature != 1.0,
            parameters=settings.parameters,
        ),
        captions=tuple(captions),
        places=_checked_places(options.places, count),
        text=text_states(config, captions, reader, **template),
        null=text_states(config, [""], reader),
        later_text=None if window is None else later_text(config, captions, reader, **template),
        given=given,
        scalars=settings.scalars(),
        batch_size=min(options.batch_size, count),
        given_pixels=None if pixels is None else _checked_pixels(options.prefix, pixels, count),
        autoencoder=options.autoencoder,
        learned=options.learned,
    )


def _checked_size(flow: FlowConfig, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of the videos; see `plan_videos`."""
    size = flow.image_shape if size is None else size
    rows, columns = size
    check(
        rows >= 1 and columns >= 1 and rows % flow.patch_size == 0 and columns % flow.patch_size == 0,
        f"size must be multiples of flow.patch_size={flow.patch_size}, got {rows} x {columns}",
    )
    check(flow.rope or tuple(size) == flow.image_shape, f"size must be {flow.image_shape} for this model, got {size}")
    return rows, columns


def later_text(
    config: ExperimentConfig, captions: Sequence[str], reader: FrozenText | None = None, **template: Any
) -> Float[np.ndarray, "B L E"] | None:
    """Text states of the captions for windows after the first, which continue a clip.

    Returns None for a model that was not trained on "(extend)" clips. A caption is unchanged if it is empty or leaves
    no room for the word. Arguments as for `text_states`.
    """
    if config.text is None:
        parts = config.data.mixture or (config.data,)
        if not any(part.drop_first for part in parts):
            return None
        return text_states(config, captions, reader, extended=True, **template)
    if EXTEND not in config.text.vocabulary:
        return None
    room = config.flow.text_length
    continued = [prefixed(c, EXTEND) if 0 < len(c.split()) < room else c for c in captions]
    return text_states(config, continued, reader)


def caption_reader(config: ExperimentConfig) -> FrozenText:
    """The text encoder of a run.

    Raises:
      ValueError: see `load_text`; or the run reads no captions.
    """
    reader = load_text(config)
    if reader is None:
        raise ValueError("captions need an experiment with text.vocabulary or data.text_encoder, got neither")
    return reader.over(None)


def text_states(
    config: ExperimentConfig, captions: Sequence[str], reader: FrozenText | None = None, **template: Any
) -> Float[np.ndarray, "B L E"]:
    """Text states float32 [n, L, D] of captions in their templates.

    Args:
      reader: the text encoder; None loads the one that `config` names.
      **template: arguments of `frozen_text.prompts`.

    Raises:
      ValueError: a model that reads no captions, an unknown word, or a caption that is too long.
    """
    reader = caption_reader(config) if reader is None else reader
    return reader.states_of(reader.encoder.ids(prompts(config, captions, **template)))[0]


def _checked_places(places: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None, count: int) -> np.ndarray:
    numbers = np.arange(count) if places is None else np.asarray(places)
    check(
        numbers.ndim in (1, 2) and len(numbers) == count and numbers.size > 0 and numbers.dtype.kind in "iu",
        f"places must be {count} integers, or one row of integers per caption, got {places!r}",
    )
    most = MAX_PLACES if numbers.ndim == 1 else 2**32
    lowest, highest = int(numbers.min()), int(numbers.max())
    wrong = lowest if lowest < 0 else highest
    check(lowest >= 0 and highest < most, f"places must be 0 to {most - 1}, got {wrong}")
    return numbers.astype(np.int32 if numbers.ndim == 1 else np.uint32)


def _checked_pixels(prefix: np.ndarray | None, pixels: np.ndarray, count: int) -> np.ndarray:
    pixels = np.asarray(pixels)
    pixels = pixels[None] if pixels.ndim == 4 else pixels
    check(
        prefix is not None and pixels.dtype == np.uint8 and pixels.ndim == 5 and len(pixels) in (1, count),
        f"prefix_pixels must be uint8 [Q, H, W, C] and go with prefix, got {pixels.dtype} {list(pixels.shape)}",
    )
    return pixels


def _checked_given(
    config: ExperimentConfig,
    prefix: np.ndarray,
    count: int,
    frames: int,
    size: tuple[int, int],
    window: SlidingWindow | None,
) -> np.ndarray:
    """Given frames as float32 [1 or n, P, H, W, C]; see `plan_videos`."""
    data, flow = config.data, config.flow
    check(flow.temporal_causal, "prefix needs a model with flow.temporal_causal=True, got False")
    check(data.noise == "gaussian", f"prefix needs a model trained with Gaussian noise, got noise {data.noise!r}")
    prefix = np.asarray(prefix)
    prefix = prefix[None] if prefix.ndim == 4 else prefix
    limit = frames if window is None else window.frames
    fits = prefix.ndim == 5 and len(prefix) in (1, count) and prefix.shape[2:] == (*size, flow.channels)
    check(
        fits and 1 <= prefix.shape[1] < limit,
        f"prefix must be [1 or {count}, P, {size[0]}, {size[1]}, {flow.channels}] with 1 <= P < {limit}, "
        f"got shape {list(prefix.shape)}",
    )
    if prefix.dtype == np.uint8:
        check(not data.on_latents, "prefix must be latents in floating point for a run on latents, got uint8")
        return prefix.astype(np.float32) / 127.5 - 1.0
    check(prefix.dtype.kind == "f", f"prefix must be uint8 or floating point, got dtype {prefix.dtype}")
    prefix = prefix.astype(np.float32)
    check(bool(np.isfinite(prefix).all()), "prefix must be finite, got values that are not")
    return prefix
