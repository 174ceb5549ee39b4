"""Likelihood of clips under a trained run: bits/dim of every clip, frame and token, with the noise of training added.

For data under Gaussian noise these are densities of the *noisy* data, expressed at the resolution of one pixel level
as `flows.bits.bits_per_dim` does for dequantised data. They compare clips and frames with each other; they are not code
lengths of the clean pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import Source, bits_per_dim
from starflow_jax.data.sources.base import CAPTION
from starflow_jax.evaluation.likelihood.frame_likelihood import (
    cut_windows,
    join_windows,
    token_log_probs,
    window_starts,
)
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sampling.videos.video_plan import default_window
from starflow_jax.sharding.layout import Layout, gathered, placed, spread, tree_layout
from starflow_jax.training.step.frozen_text import load_text
from starflow_jax.training.step.inputs import condition, noisy_pixels, word_encoder


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A clip to be scored.

    Attributes:
      name: for tables; caption: the condition in words.
      pixels: integers [T, H, W, C], 0 .. levels - 1; T is 1 for a still image.
      levels: values that a pixel can take.
      cond: condition of the flow: text states [L, text_dim], a label [], or None.
      later_cond: the same for windows after the first of a long clip; None where that is `cond`.
    """

    name: str
    caption: str
    pixels: np.ndarray
    levels: int
    cond: np.ndarray | None = None
    later_cond: np.ndarray | None = None


def source_clips(source: Source, config: ExperimentConfig, count: int, *, name: str = "clip") -> list[Clip]:
    """The first `count` clips (or images) of a source, under their own conditions, named `name` and their index.

    Raises:
      ValueError: see `frozen_text.load_text`.
    """
    clips = []
    text = None if config.text is not None else load_text(config)
    text = None if text is None else text.over(None)
    text_states: dict[bytes, np.ndarray] = {}
    for index in range(count):
        example = source[index]
        pixels = example["image"]
        if config.text is not None:
            encoder = word_encoder(config)
            states: Any = encoder.states(example["text"][None])
            caption = " ".join(encoder.vocabulary[word - 1] for word in example["text"] if word)
        elif text is not None:
            (states, text_states), caption = (
                text.states_of(example["text"][None], text_states),
                str(example.get(CAPTION, "")),
            )
        else:
            reads_label = config.flow.num_classes or config.flow.text_dim
            states = condition(jnp.asarray(example["label"])[None], config.flow)
            caption = f"class {int(example['label'])}" if reads_label else ""
        cond = None if states is None else np.asarray(states)[0]
        pixels = pixels if pixels.ndim == 4 else pixels[None]
        clips.append(Clip(f"{name} {index}", caption, pixels, source.levels, cond))
    return clips


@dataclasses.dataclass(frozen=True, eq=False)
class ClipLikelihood:
    """Bits/dim of one clip; lower is less surprising.

    Attributes:
      clip: the clip that was scored.
      tokens: float64 [draws, T, h, w], of every draw of the noise and every token.
    """

    clip: Clip
    tokens: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """Bits/dim of every frame given those before it, float64 [T], averaged over draws."""
        return self.tokens.mean(axis=(0, 2, 3))

    @property
    def bits_per_dim(self) -> float:
        """Bits/dim of the clip, averaged over draws."""
        return float(self.tokens.mean())

    @property
    def draw_error(self) -> float:
        """Standard error of `bits_per_dim` over draws; NaN for one."""
        return standard_error(self.tokens.mean(axis=(1, 2, 3)))


def score_clips(
    params: Params,
    config: ExperimentConfig,
    clips: Sequence[Clip],
    key: jax.Array,
    *,
    draws: int,
    batch_size: int = 16,
    context: int | None = None,
) -> list[ClipLikelihood]:
    """Scores clips; the noise of a clip depends only on the key, the draw and the index of the clip.

    A clip longer than the run's is scored in windows of that many frames (`frame_likelihood.window_starts`). One
    program serves clips of every length.

    Args:
      params: of a flow of `config.flow`, as `flows.parameters.split` gives them.
      clips: all of one size; key: of the noise.
      draws: of the noise, for every clip; batch_size: windows scored at a time, the last batch padded.
      context: frames given to a later window; None for as many as in sampling (`default_window`).

    Raises:
      ValueError: see `check_request`.
    """
    window = config.data.frames
    if context is None:
        context = default_window(window).num_context if window > 1 else 0
    check_request(config, clips, draws=draws, batch_size=batch_size, context=context)
    counts = [len(window_starts(len(clip.pixels), max(window, 1), context)) for clip in clips]
    size = min(batch_size, sum(counts))
    levels, token = config.data.pixel_levels, config.flow.token_channels
    clip_bits: list[list[np.ndarray]] = [[] for _ in clips]
    for draw in range(draws):
        draw_key = jax.random.fold_in(key, draw)
        noisy = [
            # Noise is added before cutting, so that a frame has the same noise in all of its windows.
            cut_windows(
                np.asarray(_noisy(clip.levels, config.data, jax.random.fold_in(draw_key, index), clip.pixels)),
                max(window, 1),
                context,
            )
            for index, clip in enumerate(clips)
        ]
        x = np.concatenate(noisy)
        cond = None
        if clips[0].cond is not None:
            cond = np.stack([row for clip, windows in zip(clips, counts, strict=True) for row in _rows(clip, windows)])
        scores = _in_batches(config.flow, params, x if window else x[:, 0], cond, size)
        bits = bits_per_dim(scores.astype(np.float64), token, levels)
        bits = bits if window else bits[:, None]
        for index, window_bits in enumerate(np.split(bits, np.cumsum(counts)[:-1])):
            clip_bits[index].append(join_windows(window_bits, len(clips[index].pixels), context))
    return [ClipLikelihood(clip, np.stack(of_clip)) for clip, of_clip in zip(clips, clip_bits, strict=True)]


def _rows(clip: Clip, windows: int) -> list[np.ndarray]:
    """The condition of each window of a clip."""
    later = clip.cond if clip.later_cond is None else clip.later_cond
    return [np.asarray(clip.cond), *[np.asarray(later)] * (windows - 1)]


def check_request(
    config: ExperimentConfig, clips: Sequence[Clip], *, draws: int, batch_size: int, context: int
) -> None:
    """Raises ValueError, naming the field, where clips cannot be scored as asked."""
    check_integer("draws", draws, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("context", context, minimum=0)
    check(len(clips) > 0, "clips must contain at least one clip, got none")
    check(not config.data.on_latents, "scores in bits/dim need a run on pixels, got one on latents")
    frames = config.data.frames
    longest = max(len(clip.pixels) for clip in clips)
    if not frames:
        check(longest == 1, f"clips must be still images for a run on still images, got one of {longest} frames")
        check(context == 0, f"context must be 0 for a run on still images, got {context}")
        return
    check(context < frames, f"context must be below the {frames} frames of the run, got {context}")
    check(
        is_frame_causal(config.flow),
        "scores of frames need a flow with flow.temporal_causal=True, got False",
    )


def file_pixels(frames: np.ndarray, data: DataConfig) -> tuple[np.ndarray, int]:
    """Frames of a file, uint8 0..255, as integers of the run's data, and the number of their levels.

    A run on dequantised data gets the nearest of its levels, since it has no density between them; for a run on
    Gaussian noise, bytes are used as they are.
    """
    levels = 256 if data.noise == "gaussian" else data.pixel_levels
    return np.rint(frames * ((levels - 1) / 255.0)).astype(np.uint8), levels


def mean_per_clip(scores: Sequence[ClipLikelihood]) -> tuple[float, float]:
    """The mean bits/dim over clips, each counting once, and its standard error (NaN for one clip)."""
    values = np.asarray([of_clip.bits_per_dim for of_clip in scores])
    return float(values.mean()), standard_error(values)


def mean_per_frame(scores: Sequence[ClipLikelihood]) -> list[tuple[float, float, int]]:
    """For every frame the mean bits/dim over the clips that have it, its standard error (NaN for one clip), and their
    number."""
    rows = []
    for frame in range(max(len(of_clip.frames) for of_clip in scores)):
        values = np.asarray([of_clip.frames[frame] for of_clip in scores if frame < len(of_clip.frames)])
        rows.append((float(values.mean()), standard_error(values), len(values)))
    return rows


def _in_batches(config: FlowConfig, params: Params, x: np.ndarray, cond: np.ndarray | None, size: int) -> np.ndarray:
    """`token_log_probs` of any number of rows in batches of one size, float32 [n, ...]."""
    scores, layout = [], tree_layout(params)
    for first in range(0, len(x), size):
        rows = np.resize(np.arange(first, min(first + size, len(x))), size)
        given = spread(layout, (x[rows], None if cond is None else cond[rows]))
        scores.append(np.asarray(_scores(config, layout, params, *given)))
    return np.concatenate(scores)[: len(x)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _noisy(levels: int, data: DataConfig, key: jax.Array, pixels: jax.Array) -> jax.Array:
    return noisy_pixels(key, pixels, levels, data)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    config: FlowConfig, layout: Layout | None, params: Params, x: jax.Array, cond: jax.Array | None
) -> jax.Array:
    flow = merge(abstract(config, layout)[0], params)
    return gathered(layout, token_log_probs(flow, placed(layout, jnp.asarray(x), "batch"), cond))
