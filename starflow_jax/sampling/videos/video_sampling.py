"""Samples of videos: draw noise frame by frame, invert the flow, remove the training noise, round to pixels.

`video_plan.plan_videos` checks a call and resolves its options; `draw_plan` samples the videos. The steps are functions
(`frame_noise`, `noisy_given`, `denoise_video`, `decode_pixels`) that streaming (`sampling.streaming`) shares: it
gives the same videos.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows import Flow, denoise_in_chunks
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import Params, abstract, merge, split
from starflow_jax.media import to_uint8
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.sampling.denoising import DENOISE_STREAM
from starflow_jax.sampling.image_sampling import to_pixels
from starflow_jax.sampling.sampling_report import SampleReport, report_on
from starflow_jax.sampling.videos.video_plan import VideoKind, VideoPlan, plan_videos
from starflow_jax.sharding.layout import gathered, placed, spread, tree_layout
from starflow_jax.solvers import OnePass, inverse

# Folded into the key of the noise that is added to given frames, which no other noise may equal.
_GIVEN_STREAM = 0x6976_656E


@dataclasses.dataclass(frozen=True, eq=False)
class Videos:
    """The result of `generate`.

    Attributes:
      videos: uint8 [n, T, H, W, C], 0..255, denoised; given frames are unchanged. For a model of latents these are the
        decoded frames.
      x: float32 [n, T, H, W, C], the samples before denoising, which the likelihood of the flow is defined on; given
        frames with the noise that was added to them.
      denoised: float32 [n, T, H, W, C]; x without denoising.
      captions: n captions; text: float32 [n, L, text_dim], their states; given_frames: P.
      report: cost and convergence, `images` counting videos.
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
    key: PRNGKeyArray,
    captions: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Videos:
    """Samples one video for every caption.

    The noise of frame t of video i depends on the key, i and t alone (`frame_noise`), not on the number of frames,
    captions or videos in a batch. One program is compiled for each combination of shapes and options and reused.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: the experiment that the flow was trained in.
      key: of the noise.
      captions: one for each video.
      progress: called with the number of new frames whenever some are done.
      **options: fields of `VideoOptions`.

    Raises:
      ValueError: see `plan_videos`.
    """
    return draw_plan(flow, key, plan_videos(config, captions, **options), progress=progress)


def draw_plan(
    flow: Flow | Params, key: PRNGKeyArray, plan: VideoPlan, *, progress: Callable[[int], None] | None = None
) -> Videos:
    """Samples the videos of a plan; arguments and result as of `generate`."""
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count = len(plan.captions)
    layout = tree_layout(params)
    kind = dataclasses.replace(plan.kind, layout=layout)
    key, scalars, null = spread(layout, (key, plan.scalars, plan.null))
    new_frames = plan.kind.frames - plan.given_frames
    batches = [np.arange(first, min(first + plan.batch_size, count)) for first in range(0, count, plan.batch_size)]
    start = time.perf_counter()
    # Compiled ahead of its first run, so that its time is measured separately; JAX caches it for the next call.
    arguments = (null, scalars, plan.learned)
    program = _draw.lower(kind, params, key, spread(layout, _rows(plan, batches[0])), *arguments).compile()
    compiled = time.perf_counter()
    noisy, denoised, outcomes = [], [], []
    for batch in batches:
        x, clean, reports = program(params, key, spread(layout, _rows(plan, batch)), *arguments)
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
        compile_seconds=compiled - start,
        non_finite=int(count - finite.sum()),
    )
    return Videos(decode_pixels(plan, clean), x, clean, plan.captions, plan.text, plan.given_frames, report)


def decode_pixels(
    plan: VideoPlan, denoised: Float[np.ndarray, "B T H W C"]
) -> UInt8[np.ndarray, "B frames rows columns channels"]:
    """Videos uint8 [n, T, H, W, C] from denoised samples; given frames are unchanged."""
    pixels = to_pixels(denoised, plan.config.data, plan.autoencoder)
    if plan.given_pixels is not None:
        pixels[:, : plan.given_pixels.shape[1]] = plan.given_pixels
    elif plan.given is not None and not plan.config.data.on_latents:
        pixels[:, : plan.given_frames] = to_uint8(plan.given)
    return pixels


def frame_noise(
    key: PRNGKeyArray,
    indices: Integer[np.ndarray | Array, "B *index"],
    times: Integer[np.ndarray | Array, " T"],
    shape: tuple[int, ...],
) -> Float[Array, "B T *shape"]:
    """Standard normal noise, float32 [B, T, *shape], of frames `times` int32 [T] of videos `indices` int [B] or [B, k].

    The integers of a video, one after another, and then the time are folded into the key.
    """

    def one(index: jax.Array, time: jax.Array) -> jax.Array:
        frame_key = key
        for integer in (*jnp.atleast_1d(index), time):
            frame_key = jax.random.fold_in(frame_key, integer)
        return jax.random.normal(frame_key, shape)

    return jax.vmap(lambda index: jax.vmap(lambda time: one(index, time))(times))(indices)


def noisy_given(
    key: PRNGKeyArray, indices: Integer[Array, "B *index"], given: Float[Array, "B P H W C"], noise_std: float
) -> Float[Array, "B P H W C"]:
    """Given frames [B, P, H, W, C] with the training noise of standard deviation `noise_std` added."""
    times = jnp.arange(given.shape[1])
    noise = frame_noise(jax.random.fold_in(key, _GIVEN_STREAM), indices, times, given.shape[2:])
    return given + noise_std * noise


class DenoiseInputs(NamedTuple):
    """What iterative denoising reads besides the video.

    Attributes:
      num_levels: int32 [], number of noise levels; None for a method that does not iterate.
      key, indices: of the noise of its steps, as in `frame_noise`.
    """

    num_levels: Integer[Array, ""] | None
    key: PRNGKeyArray
    indices: Integer[Array, "B *index"]


def denoise_video(
    flow: Flow,
    x: Float[Array, "B T H W C"],
    cond: Float[Array, "B L E"],
    kind: VideoKind,
    inputs: DenoiseInputs,
    first: int | Integer[Array, ""] = 0,
) -> Float[Array, "B T H W C"]:
    """Removes the training noise from [B, T, H, W, C] (specification, section 6).

    A video longer than the window is denoised in chunks of that length. They overlap by the context of the sliding
    window for the score, by the window of the learned denoiser if it has one, else by all frames but one.

    Args:
      flow: of `kind.denoising.flow_config`; cond: text states.
      first: index of the first frame of x in the video.
    """
    if kind.denoising.method == "none":
        return x
    chunk, overlap = denoise_chunks(kind)
    num_levels, key, indices = inputs

    def remove(piece: Float[Array, "B t H W C"], start: int | Integer[Array, ""]) -> Float[Array, "B t H W C"]:
        times = first + start + jnp.arange(piece.shape[1])

        def noise(level: Integer[Array, ""]) -> Float[Array, "B t H W C"]:
            stream = jax.random.fold_in(jax.random.fold_in(key, DENOISE_STREAM), level)
            return frame_noise(stream, indices, times, piece.shape[2:])

        return kind.denoising.apply(flow, piece, cond, kind.noise_std, num_levels, noise)

    return denoise_in_chunks(remove, x, chunk=chunk, overlap=overlap)


def denoise_chunks(kind: VideoKind) -> tuple[int | None, int | None]:
    """`chunk` and `overlap` of `denoise_in_chunks` as `denoise_video` uses them."""
    if kind.window is None:
        return None, None
    if kind.denoising.reads_score:
        return kind.window.frames, kind.window.num_context
    reach = kind.flow.denoiser.window if kind.flow.denoiser is not None else None
    return kind.window.frames, None if reach is None else min(reach, kind.window.frames - 1)


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    kind: VideoKind,
    params: Params,
    key: PRNGKeyArray,
    rows: tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None],
    null: Float[Array, "1 L E"],
    scalars: dict[str, jax.Array],
    learned: LearnedParams | None,
) -> tuple[jax.Array, jax.Array, tuple[Any, ...]]:
    """Videos [B, T, H, W, C] before and after denoising, and the solver's reports of all blocks."""
    flow = merge(abstract(kind.flow, kind.layout)[0], params)
    network = None if learned is None else learned.module(kind.flow, kind.layout)
    if kind.parameters == "ready":
        flow = ready_for_inference(flow)
        network = None if network is None else ready_for_inference(network)
    indices, text, later_text, given = rows
    shape = (*kind.size, kind.flow.channels)
    z = frame_noise(key, indices, jnp.arange(kind.frames), shape) * scalars["temperature"]
    z = placed(kind.layout, z, "batch")
    result = inverse(
        flow,
        z,
        text,
        solver=kind.solver,
        guidance=make_guidance(kind.flow.family, text, scalars["weight"], null=null) if kind.guided else None,
        prefix=None if given is None else noisy_given(key, indices, given, kind.noise_std),
        window=kind.window,
        temperature=scalars["attention_temperature"] if kind.tempered else None,
        later_cond=later_text,
        learned=network,
        ready=False,  # as they are now
    )
    if kind.denoising.method in ("score", "learned") and isinstance(kind.solver, OnePass):
        assert result.clean is not None  # the solver has a network, which estimates data without noise, too
        clean = result.clean
    else:
        if (exact := kind.denoising.flow_config(kind.flow)) != kind.flow:
            flow = merge(abstract(exact, kind.layout)[0], params)
        inputs = DenoiseInputs(scalars.get("denoise_levels"), key, indices)
        clean = denoise_video(flow, result.x, text, kind, inputs)
    return gathered(kind.layout, (result.x, clean, result.reports))


def _rows(plan: VideoPlan, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Places, text, later text and given frames of some videos, padded to a whole batch with copies."""
    rows = np.resize(batch, plan.batch_size)
    given = plan.given
    if given is not None:
        given = np.broadcast_to(given, (plan.batch_size, *given.shape[1:])) if len(given) == 1 else given[rows]
    later = None if plan.later_text is None else plan.later_text[rows]
    return plan.places[rows], plan.text[rows], later, given
