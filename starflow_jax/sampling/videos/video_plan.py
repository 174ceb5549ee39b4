"""What is asked of a video model, checked before any work, and everything it leaves open resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.choices import Denoise
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.models.text.templates import EXTEND, prefixed
from starflow_jax.sampling.images import check_denoise, default_solver
from starflow_jax.sharding.layout import Layout
from starflow_jax.solvers import AnySolver, SlidingWindow
from starflow_jax.training.step.frozen_text import FrozenText, load_text, prompts

MOST_PLACES = 2**30


@dataclasses.dataclass(frozen=True)
class VideoKind:
    """What decides the compiled program, besides the number of rows and of given frames.

    Attributes:
      flow, noise_std: of the model; solver, denoise: as in `plan_videos`.
      frames, size: T and (H, W) of the videos.
      window: where they are longer than it, else None.
      guided, tempered: whether guidance and attention temperature are in the program at all.
      layout: that the parameters lie in; None on one device.
    """

    flow: FlowConfig
    noise_std: float
    solver: AnySolver
    denoise: Denoise
    frames: int
    size: tuple[int, int]
    window: SlidingWindow | None
    guided: bool
    tempered: bool
    layout: Layout | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class VideoPlan:
    """A request for n videos, checked, everything resolved.

    Attributes:
      config: of the model; kind: what decides the program.
      captions: n of them; places: int32 [n] or uint32 [n, k], numbers that the noise depends on (`frame_noise`).
      text: float32 [n, L, V], states of the captions; null: float32 [1, L, V], of the empty one.
      later_text: the same of what windows after the first are conditioned on; None where that is `text`.
      given: float32 [1 or n, P, H, W, C], clean frames at the beginning, about [-1, 1] or latents; None for none.
      given_pixels: uint8 [1 or n, Q, H', W', C'], the frames of pixels whose latents are `given`; None where these are
        pixels themselves.
      scalars: "weight" (guidance), "temperature", "attention_temperature": float32 [].
      batch_size: videos at a time.
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

    @property
    def given_frames(self) -> int:
        """P."""
        return 0 if self.given is None else self.given.shape[1]


def default_window(frames: int) -> SlidingWindow:
    """Windows of the trained number of frames, about three quarters of each kept as context (16 of 21, as released)."""
    return SlidingWindow(frames, min(frames - 1, max(1, round(0.75 * frames))))


def plan_videos(
    config: ExperimentConfig,
    captions: Sequence[str],
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    prefix: np.ndarray | None = None,
    prefix_pixels: np.ndarray | None = None,
    solver: AnySolver | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    attention_temperature: float = 1.0,
    denoise: Denoise | None = None,
    window: SlidingWindow | None = None,
    batch_size: int = 8,
    places: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None = None,
    reader: FrozenText | None = None,
    aspect: str | None = None,
    fps: float | None = None,
) -> VideoPlan:
    """Checks a request for one video a caption; arguments left None take the value of `config`.

    Args:
      config: what the flow was trained as.
      captions: n of them, empty for no condition.
      frames: T, given frames included; None means as many as trained on.
      size: rows and columns; None means as trained on.
      prefix: clean frames [P, H, W, C] or [1 or n, P, H, W, C] with which the videos begin, uint8 or float in [-1, 1],
        or float latents.
      prefix_pixels: what `prefix` was encoded from, uint8 [Q, H', W', C'] or [1 or n, Q, H', W', C'], which is shown.
      solver: how blocks are inverted.
      guidance: weight w >= 0 of classifier-free guidance, 0 for none.
      temperature: factor of the noise z.
      attention_temperature: divides every attention logit.
      denoise: what removes the training noise, "none", "score" or "learned".
      window: how videos longer than `window.frames` are generated; None means `default_window` of the trained number.
      batch_size: videos at a time; the last batch is filled up with copies.
      places: n numbers below 2^30, each of which stands for other noise; None means 0 .. n - 1. Or n rows of k numbers
        below 2^32 each.
      reader: what reads the captions; None loads what `config` names.
      aspect, fps: that templates of captions name (`frozen_text.prompts`).

    Raises:
      ValueError: naming the field, where the flow cannot be sampled as asked.
    """
    flow, data, options = config.flow, config.data, config.sample
    check(data.frames > 0, f"videos need a model trained on clips, got data.source {data.source!r}")
    check(
        not isinstance(captions, str) and len(captions) > 0,
        f"captions must be a sequence of at least one caption, got {captions!r}",
    )
    frames = data.frames if frames is None else frames
    check_integer("frames", frames, minimum=1)
    size = flow.image_shape if size is None else size
    rows, columns = size
    check(
        rows >= 1 and columns >= 1 and rows % flow.patch_size == 0 and columns % flow.patch_size == 0,
        f"size must be multiples of flow.patch_size={flow.patch_size}, got {rows} x {columns}",
    )
    check(flow.rope or tuple(size) == flow.image_shape, f"size must be {flow.image_shape} for this model, got {size}")
    guidance = options.guidance if guidance is None else guidance
    check_real("guidance", guidance, minimum=0.0)
    temperature = options.temperature if temperature is None else temperature
    check_real("temperature", temperature, minimum=0.0)
    check_real("attention_temperature", attention_temperature)
    check(attention_temperature > 0, f"attention_temperature must be above 0, got {attention_temperature}")
    denoise = options.denoise if denoise is None else denoise
    check_denoise(config, denoise)
    window = default_window(data.frames) if window is None and data.frames > 1 else window
    window = window if window is not None and frames > window.frames else None
    check(window is None or flow.temporal_causal, f"frames must be at most {data.frames} for this model, got {frames}")
    check_integer("batch_size", batch_size, minimum=1)
    reader = caption_reader(config) if reader is None else reader
    said = {"size": (int(rows), int(columns)), "aspect": aspect, "fps": fps}
    text = text_states(config, captions, reader, **said)
    numbers = {"weight": guidance, "temperature": temperature, "attention_temperature": attention_temperature}
    return VideoPlan(
        config=config,
        kind=VideoKind(
            flow=flow,
            noise_std=data.noise_std,
            solver=default_solver(config) if solver is None else solver,
            denoise=denoise,
            frames=int(frames),
            size=(int(rows), int(columns)),
            window=window,
            guided=guidance > 0,
            tempered=attention_temperature != 1.0,
        ),
        captions=tuple(captions),
        places=_checked_places(places, len(captions)),
        text=text,
        null=text_states(config, [""], reader),
        later_text=None if window is None else later_text(config, captions, reader, **said),
        given=None
        if prefix is None
        else _checked_given(config, prefix, len(captions), frames, (rows, columns), window),
        scalars={name: jnp.float32(value) for name, value in numbers.items()},
        batch_size=min(batch_size, len(captions)),
        given_pixels=None if prefix_pixels is None else _checked_pixels(prefix, prefix_pixels, len(captions)),
    )


def later_text(
    config: ExperimentConfig, captions: Sequence[str], reader: FrozenText | None = None, **said: Any
) -> np.ndarray | None:
    """Text states of the captions as windows after the first read them: those of clips that go on.

    None for a model that was not trained on "(extend)" clips. A caption stays as it is if it is empty or leaves no
    room for the word. Arguments as of `text_states`.
    """
    if config.text is None:
        parts = config.data.mixture or (config.data,)
        if not any(part.drop_first for part in parts):
            return None
        return text_states(config, captions, reader, extended=True, **said)
    if EXTEND not in config.text.vocabulary:
        return None
    room = config.flow.text_length
    going_on = [prefixed(c, EXTEND) if 0 < len(c.split()) < room else c for c in captions]
    return text_states(config, going_on, reader)


def caption_reader(config: ExperimentConfig) -> FrozenText:
    """What reads the captions of a run.

    Raises:
      ValueError: see `load_text`; a run that reads no captions.
    """
    reader = load_text(config)
    if reader is None:
        raise ValueError("captions need an experiment with text.vocabulary or data.text_encoder, got neither")
    return reader.over(None)


def text_states(
    config: ExperimentConfig, captions: Sequence[str], reader: FrozenText | None = None, **said: Any
) -> np.ndarray:
    """Text states float32 [n, L, D] of captions in their templates.

    Args:
      reader: what reads them; None loads what `config` names.
      said: see `frozen_text.prompts`.

    Raises:
      ValueError: a model that reads no captions, an unknown word, or a caption that is too long.
    """
    reader = caption_reader(config) if reader is None else reader
    return reader.states_of(reader.encoder.ids(prompts(config, captions, **said)))[0]


def _checked_places(places: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None, count: int) -> np.ndarray:
    numbers = np.arange(count) if places is None else np.asarray(places)
    check(
        numbers.ndim in (1, 2) and len(numbers) == count and numbers.size > 0 and numbers.dtype.kind in "iu",
        f"places must be {count} integers, or rows of them, one a caption, got {places!r}",
    )
    most = MOST_PLACES if numbers.ndim == 1 else 2**32
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
