"""Captions to videos: draw noise frame by frame, invert the flow, remove the training noise, round to pixels.

`video_plan.plan_videos` checks a request and resolves what it leaves open; `generate` draws it. The pieces between them
are functions of their own (`frame_noise`, `noisy_given`, `denoise_video`, `pixels_of`), so that another
way of drawing the same plan gives the same videos.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.flows import Flow, denoise_in_chunks, learned_denoise, score_denoise
from starflow_jax.flows.guidance import guidance_of
from starflow_jax.flows.parameters import Params, abstract, merge, split
from starflow_jax.media import to_uint8
from starflow_jax.sampling.images import to_pixels
from starflow_jax.sampling.sampling_report import SampleReport, report_on
from starflow_jax.sampling.videos.video_plan import VideoKind, VideoPlan, plan_videos
from starflow_jax.sharding.layout import gathered, layout_of, placed, spread
from starflow_jax.solvers import inverse

# Keeps the noise that is added to given frames apart from all noise that videos are made of.
_GIVEN_STREAM = 0x6976_656E


@dataclasses.dataclass(frozen=True, eq=False)
class Videos:
    """What `generate` returns.

    Attributes:
      videos: uint8 [n, T, H, W, C], 0..255, denoised; given frames as they were given. Of a run on latents they have
        the pixels and frames that its autoencoder makes of them.
      x: float32 [n, T, H, W, C], what the flow gave, the training noise still in it (of given frames: the noisy ones it
        was given). The flow's likelihood speaks of it.
      denoised: float32 [n, T, H, W, C]; x where nothing was denoised.
      captions: n; text: float32 [n, L, V], their states; given_frames: P.
      report: how it went, `images` counting videos.
    """

    videos: np.ndarray
    x: np.ndarray
    denoised: np.ndarray
    captions: tuple[str, ...]
    text: np.ndarray
    given_frames: int
    report: SampleReport


def generate(
    flow: Flow | Params,
    config: ExperimentConfig,
    key: jax.Array,
    captions: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Videos:
    """Draws one video for every caption.

    Frame t of video i depends on noise that the key, its place i and t decide (`frame_noise`): more frames, more
    captions or other batches leave the noise as it is. One program is compiled for a kind of call and kept.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: what the flow was trained as.
      key: of the noise.
      captions: one a video.
      progress: called with the number of new frames whenever some are done.
      options: see `plan_videos`.

    Raises:
      ValueError: see `plan_videos`.
    """
    return draw_plan(flow, key, plan_videos(config, captions, **options), progress=progress)


def draw_plan(
    flow: Flow | Params, key: jax.Array, plan: VideoPlan, *, progress: Callable[[int], None] | None = None
) -> Videos:
    """Draws the videos of a plan; arguments and result as of `generate`."""
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count = len(plan.captions)
    layout = layout_of(params)
    kind = dataclasses.replace(plan.kind, layout=layout)
    key, scalars, null = spread(layout, (key, plan.scalars, plan.null))
    new_frames = plan.kind.frames - plan.given_frames
    batches = [np.arange(first, min(first + plan.batch_size, count)) for first in range(0, count, plan.batch_size)]
    begun = time.perf_counter()
    # Built ahead of its first run, so that its time is told apart from drawing; JAX keeps it for the next call.
    program = _draw.lower(kind, params, key, *spread(layout, _rows(plan, batches[0])), null, scalars).compile()
    compiled = time.perf_counter()
    noisy, denoised, outcomes = [], [], []
    for batch in batches:
        x, clean, reports = program(params, key, *spread(layout, _rows(plan, batch)), null, scalars)
        noisy.append(np.asarray(x)[: len(batch)])
        denoised.append(np.asarray(clean)[: len(batch)])
        outcomes.append(jax.device_get(reports))
        if progress is not None:
            progress(len(batch) * new_frames)
    done = time.perf_counter()

    x, clean = np.concatenate(noisy), np.concatenate(denoised)
    finite = np.isfinite(clean).all(axis=(1, 2, 3, 4))
    report = report_on(
        outcomes,
        count=count,
        batch_size=plan.batch_size,
        seconds=done - compiled,
        compile_seconds=compiled - begun,
        non_finite=int(count - finite.sum()),
    )
    return Videos(pixels_of(plan, clean), x, clean, plan.captions, plan.text, plan.given_frames, report)


def pixels_of(plan: VideoPlan, denoised: np.ndarray) -> np.ndarray:
    """Videos [n, T, H, W, C] as they are looked at, uint8; the given frames as they were given."""
    pixels = to_pixels(denoised, plan.config.data)
    if plan.given_pixels is not None:
        pixels[:, : plan.given_pixels.shape[1]] = plan.given_pixels
    elif plan.given is not None and not plan.config.data.on_latents:
        pixels[:, : plan.given_frames] = to_uint8(plan.given)
    return pixels


def frame_noise(key: jax.Array, places: jax.Array, times: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of frames `times` int32 [T] of videos `places`, integers [B] or [B, k]: f32 [B, T, *shape].

    That of one frame depends on the key, its place and its time alone, which are folded into the key in this order; of
    a place of k numbers, one after another.
    """

    def one(place: jax.Array, time: jax.Array) -> jax.Array:
        own = key
        for number in (*jnp.atleast_1d(place), time):
            own = jax.random.fold_in(own, number)
        return jax.random.normal(own, shape)

    return jax.vmap(lambda place: jax.vmap(lambda time: one(place, time))(times))(places)


def noisy_given(key: jax.Array, places: jax.Array, given: jax.Array, noise_std: float) -> jax.Array:
    """Clean given frames [B, P, H, W, C] as the flow was trained to see frames: with sigma_n times noise added."""
    times = jnp.arange(given.shape[1])
    noise = frame_noise(jax.random.fold_in(key, _GIVEN_STREAM), places, times, given.shape[2:])
    return given + noise_std * noise


def denoise_video(flow: Flow, x: jax.Array, cond: jax.Array, kind: VideoKind) -> jax.Array:
    """Removes the training noise from [B, T, H, W, C] (specification, section 6).

    A video longer than the window is denoised in chunks of that length, overlapping by the learned denoiser's own
    window where it has one (else by all frames but one), or by the sliding window's context for the score.
    """
    if kind.denoise == "none":
        return x
    chunk, overlap = denoise_chunks(kind)
    remove = score_denoise if kind.denoise == "score" else learned_denoise
    return denoise_in_chunks(lambda piece: remove(flow, piece, cond, kind.noise_std), x, chunk=chunk, overlap=overlap)


def denoise_chunks(kind: VideoKind) -> tuple[int | None, int | None]:
    """`chunk` and `overlap` of `denoise_in_chunks` as `denoise_video` uses them."""
    if kind.window is None:
        return None, None
    if kind.denoise == "score":
        return kind.window.frames, kind.window.num_context
    reach = kind.flow.denoiser.window if kind.flow.denoiser is not None else None
    return kind.window.frames, None if reach is None else min(reach, kind.window.frames - 1)


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    kind: VideoKind,
    params: Params,
    key: jax.Array,
    places: jax.Array,
    text: jax.Array,
    later_text: jax.Array | None,
    given: jax.Array | None,
    null: jax.Array,
    scalars: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, tuple[Any, ...]]:
    """Noisy and denoised videos [B, T, H, W, C], and what the solver reports of every block."""
    flow = merge(abstract(kind.flow, kind.layout)[0], params)
    shape = (*kind.size, kind.flow.channels)
    z = frame_noise(key, places, jnp.arange(kind.frames), shape) * scalars["temperature"]
    z = placed(kind.layout, z, "batch")
    result = inverse(
        flow,
        z,
        text,
        solver=kind.solver,
        guidance=guidance_of(kind.flow.family, text, scalars["weight"], null=null) if kind.guided else None,
        prefix=None if given is None else noisy_given(key, places, given, kind.noise_std),
        window=kind.window,
        temperature=scalars["attention_temperature"] if kind.tempered else None,
        later_cond=later_text,
    )
    return gathered(kind.layout, (result.x, denoise_video(flow, result.x, text, kind), result.reports))


def _rows(plan: VideoPlan, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Places, text, later text and given frames of some videos, filled up to a whole batch with copies of them."""
    rows = np.resize(batch, plan.batch_size)
    given = plan.given
    if given is not None:
        given = np.broadcast_to(given, (plan.batch_size, *given.shape[1:])) if len(given) == 1 else given[rows]
    later = None if plan.later_text is None else plan.later_text[rows]
    return plan.places[rows], plan.text[rows], later, given
