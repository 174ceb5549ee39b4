"""Samples videos frame by frame: each frame is yielded as soon as it is final, while later ones are computed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows import Flow
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.parameters import Params, split
from starflow_jax.media import to_uint8
from starflow_jax.sampling.image_sampling import to_pixels
from starflow_jax.sampling.latent_shapes import run_autoencoder
from starflow_jax.sampling.sampling_report import report_on
from starflow_jax.sampling.streaming.denoise_chunks import FinalFrame, FrameDenoiser, chunk_plan, frames_ahead
from starflow_jax.sampling.videos.video_plan import VideoKind, VideoPlan, plan_videos
from starflow_jax.sampling.videos.video_sampling import (
    DenoiseInputs,
    Videos,
    denoise_chunks,
    denoise_video,
    frame_noise,
    noisy_given,
)
from starflow_jax.solvers import BlockReport
from starflow_jax.solvers.streaming.pipeline import FrameStream
from starflow_jax.solvers.streaming.stage_programs import partial_flow


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedFrame:
    """One frame of every video.

    Attributes:
      index: t.
      pixels: uint8 [n, H, W, C], 0..255, denoised; given frames are unchanged. For a model of the latents of a video
        autoencoder [n, f, H, W, C], the f frames that the latent frame is decoded to.
      x: float32 [n, H, W, C], the frame before denoising.
      denoised: float32 [n, H, W, C]; x without denoising.
      seconds: since the start of sampling, after the programs were compiled.
    """

    index: int
    pixels: np.ndarray
    x: np.ndarray
    denoised: np.ndarray
    seconds: float


@dataclasses.dataclass(frozen=True)
class StreamReport:
    """Cost of a stream, and its convergence.

    Attributes:
      frames: new frames yielded so far; first_frame: seconds until the first of them, None before.
      seconds: until the last of them; compile_seconds: spent on compiling before that.
      blocks: the solver's reports of all blocks (`FrameStream.reports`); empty before the end of the stream.
    """

    frames: int
    first_frame: float | None
    seconds: float
    compile_seconds: float
    blocks: tuple[BlockReport, ...]

    @property
    def frames_per_second(self) -> float:
        """New frames (of all videos together) per second since the start; 0 before the first."""
        return self.frames / self.seconds if self.frames else 0.0


def stream(
    flow: Flow | Params,
    config: ExperimentConfig,
    key: PRNGKeyArray,
    captions: Sequence[str],
    *,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> VideoStream:
    """Samples one video for every caption, all together, and yields frame after frame.

    The videos are those of `videos.generate` up to float32 rounding, and within the tolerance of a solver that stops
    for a whole batch of frames. With a learned denoiser a frame is yielded when the later frames that its look-ahead
    reaches are known; without a bound on the look-ahead, or denoised by the score, at the end of its window. The deep
    block continues in the background while the caller works, by a few stages at most.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: the experiment that the flow was trained in; all blocks but the deep one must be local to frames.
      key: of the noise.
      captions: one for each video.
      devices: two devices, for the deep block and for all other blocks, which then run concurrently; or one device for
        all. None leaves the parameters where they are.
      **options: fields of `VideoOptions` other than `batch_size`.

    Raises:
      ValueError: see `plan_videos`, and `FrameStream`.
    """
    check("batch_size" not in options, "batch_size is not an option of a stream, which samples all its videos together")
    plan = plan_videos(config, captions, **options, batch_size=max(len(captions), 1))
    return VideoStream(flow, key, plan, devices)


def stream_devices() -> list[jax.Device] | None:
    """The devices of a stream: one for the deep block and one for all others where there are two; else None."""
    devices = jax.devices()
    return devices[:2] if len(devices) > 1 else None


def stream_plan(
    flow: Flow | Params,
    key: PRNGKeyArray,
    plan: VideoPlan,
    *,
    progress: Callable[[int], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Videos, tuple[StreamReport, ...]]:
    """Streams the videos of a plan batch by batch; returns what `draw_plan` does, and a report for each batch.

    Args:
      flow, key, plan: as for `draw_plan`.
      progress: called with the number of new frames (of all videos of the batch) whenever some are final.
      devices: as for `stream`.
    """
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count, given_frames = len(plan.captions), plan.given_frames
    clips: list[tuple[np.ndarray, ...]] = []
    reports = []
    for begin in range(0, count, plan.batch_size):
        # A short last batch is padded with copies, so that no further program is compiled.
        size = min(plan.batch_size, count - begin)
        rows = np.resize(np.arange(begin, begin + size), plan.batch_size)
        part = dataclasses.replace(
            plan,
            captions=tuple(plan.captions[row] for row in rows),
            places=plan.places[rows],
            text=plan.text[rows],
            later_text=None if plan.later_text is None else plan.later_text[rows],
            given=plan.given if plan.given is None or len(plan.given) == 1 else plan.given[rows],
            given_pixels=plan.given_pixels
            if plan.given_pixels is None or len(plan.given_pixels) == 1
            else plan.given_pixels[rows],
        )
        frames = []
        with VideoStream(params, key, part, devices) as videos:
            for frame in videos:
                pixels = frame.pixels if frame.pixels.ndim == 5 else frame.pixels[:, None]
                frames.append((pixels[:size], frame.x[:size, None], frame.denoised[:size, None]))
                if progress is not None and frame.index >= given_frames:
                    progress(size)
        clips.append(tuple(np.concatenate(parts, axis=1) for parts in zip(*frames, strict=True)))
        reports.append(videos.report)
    pixels, x, denoised = (np.concatenate(parts) for parts in zip(*clips, strict=True))
    finite = np.isfinite(denoised).all(axis=(1, 2, 3, 4))
    report = report_on(
        [report.blocks for report in reports],
        count=count,
        batch_size=plan.batch_size,
        seconds=sum(report.seconds for report in reports),
        compile_seconds=sum(report.compile_seconds for report in reports),
        non_finite=int(count - finite.sum()),
    )
    return Videos(pixels, x, denoised, plan.captions, plan.text, given_frames, report), tuple(reports)


class VideoStream(Iterator[StreamedFrame]):
    """Yields the frames of videos in order. `close`, or leaving a `with` block, ends sampling early.

    Attributes:
      plan: the videos.
    """

    def __init__(
        self, flow: Flow | Params, key: PRNGKeyArray, plan: VideoPlan, devices: Sequence[jax.Device] | None = None
    ):
        """Arguments as of `stream`; the `batch_size` of the plan is not used."""
        params = split(flow)[1] if isinstance(flow, Flow) else flow
        kind, count = plan.kind, len(plan.captions)
        text = jnp.asarray(plan.text)
        self.plan = plan
        self._shape = (count, kind.frames, *kind.size, kind.flow.channels)
        self._stream = FrameStream(
            params,
            kind.flow,
            self._shape,
            text,
            given=plan.given_frames,
            solver=kind.solver,
            guidance=make_guidance(kind.flow.family, text, plan.scalars["weight"], null=jnp.asarray(plan.null))
            if kind.guided
            else None,
            window=kind.window,
            temperature=plan.scalars["attention_temperature"] if kind.tempered else None,
            later_cond=None if plan.later_text is None else jnp.asarray(plan.later_text),
            learned=plan.learned,
            devices=devices,
            ready=kind.parameters == "ready",
        )
        deep, shallow = self._stream.deep, self._stream.shallow
        self._noise = (self._shape[1:], deep.put(key), deep.put(plan.places), plan.scalars["temperature"])
        self._given = None
        if plan.given is not None:
            given = np.broadcast_to(plan.given, (count, *plan.given.shape[1:]))
            self._given = (kind.noise_std, shallow.put(key), shallow.put(plan.places), shallow.put(given))
        # The score is the gradient of the whole flow; the learned denoiser is on the device of the shallow blocks.
        self._params = shallow.put(params) if kind.denoising.reads_score else self._stream.shallow_params
        levels = plan.scalars.get("denoise_levels")
        levels = None if levels is None else shallow.put(levels)
        self._inputs = DenoiseInputs(levels, shallow.put(key), shallow.put(plan.places))
        self._text = shallow.put(text)
        self._unknown = shallow.put(jnp.asarray(np.zeros((count, *self._shape[2:]), np.float32)))
        # The denoiser treats a chunk as a whole video.
        self._kind = dataclasses.replace(kind, window=None)
        autoencoder = plan.autoencoder or run_autoencoder(plan.config.data)
        self._decode = None if autoencoder is None else autoencoder.decoder()
        self._clips = autoencoder is not None and autoencoder.autoencoder.frame_stride > 1
        self._decoded_frames = self._new = 0
        self._first: float | None = None
        self._seconds = self._compile_seconds = 0.0
        self._frames = self._draw()

    def __next__(self) -> StreamedFrame:
        return next(self._frames)

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends sampling; frames that were yielded stay valid."""
        self._frames.close()

    @property
    def report(self) -> StreamReport:
        """The report so far."""
        return StreamReport(self._new, self._first, self._seconds, self._compile_seconds, self._stream.reports)

    def _denoiser(self) -> FrameDenoiser:
        kind = self.plan.kind
        if kind.denoising.method == "none":
            return FrameDenoiser(chunk_plan(kind.frames, 1, 0), 0, lambda frames, _: frames, self._unknown)
        chunks = chunk_plan(kind.frames, *denoise_chunks(kind))
        ahead = None if kind.denoising.reads_score else frames_ahead(kind.flow.denoiser)
        if ahead is not None and kind.denoising.iterates:  # each level reads further ahead
            ahead *= int(self.plan.scalars["denoise_levels"])

        def denoise(frames: tuple[jax.Array, ...], start: int) -> tuple[jax.Array, ...]:
            return _denoised(self._kind, self._params, self._text, frames, self._inputs, jnp.int32(start))

        return FrameDenoiser(chunks, ahead, denoise, self._unknown)

    def _compile(self, denoiser: FrameDenoiser) -> None:
        """Compiles every program ahead of its first run; JAX caches them for the next stream."""
        _noise.lower(*self._noise).compile()
        if self._given is not None:
            _noisy.lower(*self._given).compile()
        if self._kind.denoising.method != "none":
            for length in {chunk.length for chunk in denoiser.chunks}:
                frames = ((self._unknown,) * length, self._inputs, jnp.int32(0))
                _denoised.lower(self._kind, self._params, self._text, *frames).compile()
        self._stream.compile()

    def _draw(self) -> Generator[StreamedFrame, None, None]:
        denoiser = self._denoiser()
        compile_start = time.perf_counter()
        self._compile(denoiser)
        start = time.perf_counter()
        self._compile_seconds = start - compile_start
        prefix = None
        final: list[FinalFrame] = []
        if self._given is not None:
            prefix, frames = _noisy(*self._given)
            final = denoiser.push(frames)
        groups = self._stream.run(_noise(*self._noise), prefix, lambda _, frames: denoiser.push(frames))
        for group in itertools.chain([final], groups):
            for frame in group:
                on_host = self._on_host(frame, start)
                if frame.time >= self.plan.given_frames:
                    self._new += 1
                    self._first = on_host.seconds if self._first is None else self._first
                    self._seconds = on_host.seconds
                yield on_host

    def _on_host(self, frame: FinalFrame, start: float) -> StreamedFrame:
        """A frame on the host; waits until it is computed."""
        plan = self.plan
        x, denoised = np.asarray(frame.noisy), np.asarray(frame.denoised)
        if self._decode is not None:
            pixels = self._decoded(denoised, frame.time)
        else:
            pixels = to_pixels(denoised, plan.config.data)
            if plan.given is not None and frame.time < plan.given_frames:
                pixels = np.broadcast_to(to_uint8(plan.given[:, frame.time]), pixels.shape)
        return StreamedFrame(frame.time, pixels, x, denoised, time.perf_counter() - start)

    def _decoded(self, latents: np.ndarray, index: int) -> np.ndarray:
        """The pixels of a latent frame, uint8 [n, f, H, W, C], or [n, H, W, C] if f is always 1."""
        assert self._decode is not None
        pixels = to_uint8(np.clip(self._decode(np.nan_to_num(latents)), -1.0, 1.0))
        given = self.plan.given_pixels
        if given is not None and index < self.plan.given_frames:
            first = self._decoded_frames
            pixels = np.broadcast_to(given[:, first : first + pixels.shape[1]], pixels.shape)
        self._decoded_frames += pixels.shape[1]
        return pixels if self._clips else pixels[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _noise(shape: tuple[int, ...], key: PRNGKeyArray, indices: jax.Array, temperature: jax.Array) -> jax.Array:
    """Noise of videos of shape [T, H, W, C], [n, T, H, W, C]."""
    return frame_noise(key, indices, jnp.arange(shape[0]), shape[1:]) * temperature


@functools.partial(jax.jit, static_argnums=0)
def _noisy(
    noise_std: float, key: PRNGKeyArray, indices: jax.Array, given: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Given frames with noise, [n, P, H, W, C], and the same as a tuple of frames."""
    x = noisy_given(key, indices, given, noise_std)
    return x, tuple(x[:, index] for index in range(x.shape[1]))


@functools.partial(jax.jit, static_argnums=0)
def _denoised(
    kind: VideoKind,
    params: Params,
    text: jax.Array,
    frames: tuple[jax.Array, ...],
    inputs: DenoiseInputs,
    start: jax.Array,
) -> tuple[jax.Array, ...]:
    """All frames [n, H, W, C] of a chunk, denoised; start: the index of the first."""
    flow = partial_flow(kind.denoising.flow_config(kind.flow), params)
    clean = denoise_video(flow, jnp.stack(frames, axis=1), text, kind, inputs, start)
    return tuple(clean[:, index] for index in range(len(frames)))
