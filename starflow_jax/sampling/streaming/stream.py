"""Captions to videos frame by frame: each frame is handed out as soon as it is final, while later ones are drawn."""

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

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.flows import Flow
from starflow_jax.flows.guidance import guidance_of
from starflow_jax.flows.parameters import Params, split
from starflow_jax.media import to_uint8
from starflow_jax.sampling.images import to_pixels
from starflow_jax.sampling.latent_shapes import autoencoder_of
from starflow_jax.sampling.sampling_report import report_on
from starflow_jax.sampling.streaming.denoise_chunks import FinalFrame, FrameDenoiser, chunk_plan, frames_ahead
from starflow_jax.sampling.videos.draw import Videos, denoise_chunks, denoise_video, frame_noise, noisy_given
from starflow_jax.sampling.videos.video_plan import VideoKind, VideoPlan, plan_videos
from starflow_jax.solvers import BlockReport
from starflow_jax.solvers.streaming.pipeline import FrameStream
from starflow_jax.solvers.streaming.stage_programs import partial_flow


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedFrame:
    """One frame of every video.

    Attributes:
      index: its number t.
      pixels: uint8 [n, H, W, C], 0..255, denoised; a given frame as it was given. Of a run on the latents of a video
        autoencoder [n, f, H, W, C], the f frames that a latent frame stands for.
      x: float32 [n, H, W, C], what the flow gave, the training noise still in it.
      denoised: float32 [n, H, W, C]; x where nothing is denoised.
      seconds: since the drawing began (programs were there already).
    """

    index: int
    pixels: np.ndarray
    x: np.ndarray
    denoised: np.ndarray
    seconds: float


@dataclasses.dataclass(frozen=True)
class StreamReport:
    """How a stream went.

    Attributes:
      frames: new ones handed out so far; first_frame: seconds until the first of them, None before.
      seconds: until the last one; compile_seconds: building programs before that.
      blocks: what the solver reports of every block (`FrameStream.reports`); empty before the end of the stream.
    """

    frames: int
    first_frame: float | None
    seconds: float
    compile_seconds: float
    blocks: tuple[BlockReport, ...]

    @property
    def frames_per_second(self) -> float:
        """New frames (of all videos at once) a second, from the beginning; 0 before the first."""
        return self.frames / self.seconds if self.frames else 0.0


def stream(
    flow: Flow | Params,
    config: ExperimentConfig,
    key: jax.Array,
    captions: Sequence[str],
    *,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> VideoStream:
    """Draws one video for every caption, all at once, and hands out frame after frame.

    The videos are those of `videos.generate`, up to float32 rounding (and, where an iteration stops for a
    whole batch of frames at a time, within its tolerance). With a learned denoiser a frame comes as soon as those later
    ones are known that its look-ahead reaches; without look-ahead bounds, or denoised by the score, at the end of its
    window. The deep block goes on in the background while the caller is busy, by a few stages at most.

    Args:
      flow: a flow, or its parameters as `flows.parameters.split` gives them.
      config: what the flow was trained as; all its blocks but the deep one run inside frames.
      key: of the noise.
      captions: one a video.
      devices: of the deep block, and of everything behind it, which then work at once (`mesh.devices.flat` of a mesh
        of two); a single one for all. None leaves everything where it is.
      options: see `plan_videos`; without `batch_size`.

    Raises:
      ValueError: see `plan_videos`, and `FrameStream`.
    """
    check("batch_size" not in options, "batch_size is not an option of a stream: all its videos are drawn at once")
    plan = plan_videos(config, captions, **options, batch_size=max(len(captions), 1))
    return VideoStream(flow, key, plan, devices)


def stream_plan(
    flow: Flow | Params,
    key: jax.Array,
    plan: VideoPlan,
    *,
    progress: Callable[[int], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Videos, tuple[StreamReport, ...]]:
    """The videos of a plan, batch after batch, each streamed: as `videos.draw_plan`, with how each went.

    Args:
      flow, key, plan: as for `draw_plan`.
      progress: called with the number of new frames (of all videos of the batch) whenever some are there.
      devices: as for `stream`.
    """
    params = split(flow)[1] if isinstance(flow, Flow) else flow
    count, given_frames = len(plan.captions), plan.given_frames
    drawn: list[tuple[np.ndarray, ...]] = []
    reports = []
    for begin in range(0, count, plan.batch_size):
        # Filled up to a whole batch with copies, so that the last one needs no program of its own.
        own = min(plan.batch_size, count - begin)
        rows = np.resize(np.arange(begin, begin + own), plan.batch_size)
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
                frames.append((pixels[:own], frame.x[:own, None], frame.denoised[:own, None]))
                if progress is not None and frame.index >= given_frames:
                    progress(own)
        drawn.append(tuple(np.concatenate(of_all, axis=1) for of_all in zip(*frames, strict=True)))
        reports.append(videos.report)
    pixels, x, denoised = (np.concatenate(of_all) for of_all in zip(*drawn, strict=True))
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
    """The frames of videos, in order. `close`, or leaving a `with` block, ends the drawing early.

    Attributes:
      plan: what is drawn.
    """

    def __init__(
        self, flow: Flow | Params, key: jax.Array, plan: VideoPlan, devices: Sequence[jax.Device] | None = None
    ):
        """As `stream`, of a plan; its `batch_size` is not used."""
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
            guidance=guidance_of(kind.flow.family, text, plan.scalars["weight"], null=jnp.asarray(plan.null))
            if kind.guided
            else None,
            window=kind.window,
            temperature=plan.scalars["attention_temperature"] if kind.tempered else None,
            later_cond=None if plan.later_text is None else jnp.asarray(plan.later_text),
            devices=devices,
        )
        deep, shallow = self._stream.deep, self._stream.shallow
        self._noise = (self._shape[1:], deep.put(key), deep.put(plan.places), plan.scalars["temperature"])
        self._given = None
        if plan.given is not None:
            given = np.broadcast_to(plan.given, (count, *plan.given.shape[1:]))
            self._given = (kind.noise_std, shallow.put(key), shallow.put(plan.places), shallow.put(given))
        # The score is the gradient of the whole flow; the learned denoiser lives with the shallow blocks.
        self._params = shallow.put(params) if kind.denoise == "score" else self._stream.shallow_params
        self._text = shallow.put(text)
        self._unknown = shallow.put(jnp.asarray(np.zeros((count, *self._shape[2:]), np.float32)))
        # A chunk is a video of its own to its denoiser.
        self._kind = dataclasses.replace(kind, window=None)
        found = autoencoder_of(plan.config.data)
        self._decode = None if found is None else found.decoder()
        self._clips = found is not None and found.autoencoder.frame_stride > 1
        self._shown_frames = self._new = 0
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
        """Ends the drawing; what was handed out stays."""
        self._frames.close()

    @property
    def report(self) -> StreamReport:
        """How it went so far."""
        return StreamReport(self._new, self._first, self._seconds, self._compile_seconds, self._stream.reports)

    def _denoiser(self) -> FrameDenoiser:
        kind = self.plan.kind
        if kind.denoise == "none":
            return FrameDenoiser(chunk_plan(kind.frames, 1, 0), 0, lambda frames: frames, self._unknown)
        chunks = chunk_plan(kind.frames, *denoise_chunks(kind))
        ahead = frames_ahead(kind.flow.denoiser) if kind.denoise == "learned" else None
        return FrameDenoiser(
            chunks, ahead, lambda frames: _denoised(self._kind, self._params, self._text, frames), self._unknown
        )

    def _compile(self, denoiser: FrameDenoiser) -> None:
        """Builds every program ahead of its first run; JAX keeps them for the next stream."""
        _noise.lower(*self._noise).compile()
        if self._given is not None:
            _noisy.lower(*self._given).compile()
        if self._kind.denoise != "none":
            for length in {chunk.length for chunk in denoiser.chunks}:
                _denoised.lower(self._kind, self._params, self._text, (self._unknown,) * length).compile()
        self._stream.compile()

    def _draw(self) -> Generator[StreamedFrame, None, None]:
        denoiser = self._denoiser()
        begun = time.perf_counter()
        self._compile(denoiser)
        start = time.perf_counter()
        self._compile_seconds = start - begun
        prefix = None
        final: list[FinalFrame] = []
        if self._given is not None:
            prefix, frames = _noisy(*self._given)
            final = denoiser.push(frames)
        groups = self._stream.run(_noise(*self._noise), prefix, lambda _, frames: denoiser.push(frames))
        for group in itertools.chain([final], groups):
            for frame in group:
                shown = self._shown(frame, start)
                if frame.number >= self.plan.given_frames:
                    self._new += 1
                    self._first = shown.seconds if self._first is None else self._first
                    self._seconds = shown.seconds
                yield shown

    def _shown(self, frame: FinalFrame, start: float) -> StreamedFrame:
        """A frame on the host; waits until it is there."""
        plan = self.plan
        x, denoised = np.asarray(frame.noisy), np.asarray(frame.denoised)
        if self._decode is not None:
            pixels = self._decoded(denoised, frame.number)
        else:
            pixels = to_pixels(denoised, plan.config.data)
            if plan.given is not None and frame.number < plan.given_frames:
                pixels = np.broadcast_to(to_uint8(plan.given[:, frame.number]), pixels.shape)
        return StreamedFrame(frame.number, pixels, x, denoised, time.perf_counter() - start)

    def _decoded(self, latents: np.ndarray, number: int) -> np.ndarray:
        """The pixels of a latent frame, uint8 [n, f, H, W, C], or [n, H, W, C] where one is always one."""
        assert self._decode is not None
        pixels = to_uint8(np.clip(self._decode(np.nan_to_num(latents)), -1.0, 1.0))
        given = self.plan.given_pixels
        if given is not None and number < self.plan.given_frames:
            first = self._shown_frames
            pixels = np.broadcast_to(given[:, first : first + pixels.shape[1]], pixels.shape)
        self._shown_frames += pixels.shape[1]
        return pixels if self._clips else pixels[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _noise(shape: tuple[int, ...], key: jax.Array, places: jax.Array, temperature: jax.Array) -> jax.Array:
    """Noise of videos of shape [T, H, W, C], [n, T, H, W, C]."""
    return frame_noise(key, places, jnp.arange(shape[0]), shape[1:]) * temperature


@functools.partial(jax.jit, static_argnums=0)
def _noisy(
    noise_std: float, key: jax.Array, places: jax.Array, given: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Given frames as the flow sees them, [n, P, H, W, C], and each alone."""
    x = noisy_given(key, places, given, noise_std)
    return x, tuple(x[:, place] for place in range(x.shape[1]))


@functools.partial(jax.jit, static_argnums=0)
def _denoised(kind: VideoKind, params: Params, text: jax.Array, frames: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """All frames [n, H, W, C] of a chunk without the training noise."""
    clean = denoise_video(partial_flow(kind.flow, params), jnp.stack(frames, axis=1), text, kind)
    return tuple(clean[:, place] for place in range(len(frames)))
