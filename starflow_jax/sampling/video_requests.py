"""Plans and runs requests for videos, and selects the likeliest candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import UInt8

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.data.decoding.buckets import image_size
from starflow_jax.media.reading import MAX_FRAMES
from starflow_jax.models.text.templates import prefixed
from starflow_jax.sampling.captions import readable_captions
from starflow_jax.sampling.denoising import denoise_fields
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import likeliest, log_likelihoods
from starflow_jax.sampling.sample_requests import FPS_RANGE, SampleRequest
from starflow_jax.sampling.solver_choice import choose_solver
from starflow_jax.sampling.streaming.stream import StreamReport, stream_devices, stream_plan
from starflow_jax.sampling.videos import video_sampling
from starflow_jax.sampling.videos.given_frames import FrameReader, GivenFrames
from starflow_jax.sampling.videos.video_plan import VideoPlan, caption_reader, default_window, plan_videos
from starflow_jax.sampling.videos.video_sampling import Videos
from starflow_jax.solvers import AnySolver, SlidingWindow

BATCH_SIZE, DEFAULT_FPS = 8, 8.0


@dataclasses.dataclass(frozen=True, eq=False)
class VideoRequestPlan:
    """A request for videos with everything resolved that it leaves open.

    Attributes:
      request: the request.
      plan: the videos to sample; None where no caption can be read.
      left_out: (caption, reason) of every caption that the model cannot read.
      each: videos of every caption.
      frames, size: T and (H, W) of the videos in pixels.
      given_frames: of these frames, those that are given.
      fps: frames per second.
      solver: the solver that inverts blocks.
    """

    request: SampleRequest
    plan: VideoPlan | None
    left_out: tuple[tuple[str, str], ...]
    each: int
    frames: int
    size: tuple[int, int]
    given_frames: int
    fps: float
    solver: AnySolver

    @property
    def keep(self) -> int:
        """Videos of every caption that are kept."""
        return self.each if self.request.candidates is None else self.request.keep or 1

    @property
    def new_flow_frames(self) -> int:
        """Number of frames of the flow that are sampled, of all videos together."""
        return 0 if self.plan is None else len(self.plan.captions) * (self.plan.kind.frames - self.plan.given_frames)


@dataclasses.dataclass(frozen=True, eq=False)
class SampledVideos:
    """The result of a request for videos.

    Attributes:
      samples: all sampled videos.
      kept: int [m], indices of the videos to keep: all of them, or the likeliest candidates.
      scores: float32 [m], log-likelihoods of the kept videos in nats; None where there are no candidates.
      streams: the report of every batch of a stream; empty without streaming.
      plan: their plan.
    """

    samples: Videos
    kept: np.ndarray
    scores: np.ndarray | None
    streams: tuple[StreamReport, ...]
    plan: VideoPlan

    @property
    def videos(self) -> UInt8[np.ndarray, "kept T H W C"]:
        """The kept videos, uint8 [m, T, H, W, C]."""
        return self.samples.videos[self.kept]


def plan_request(
    run: Run, request: SampleRequest, *, warn: Callable[[str], None], max_frames: int = MAX_FRAMES
) -> VideoRequestPlan:
    """Resolves a request for videos.

    Args:
      run: the trained model.
      request: the request.
      warn: called with messages about captions that are left out, given frames and an old calibration.
      max_frames: of a given clip.

    Raises:
      RequestError, ValueError: the request does not fit the model.
    """
    request.check_kind(run.workdir, videos=True)
    config, size = run.config, video_size(run.config, request.aspect)
    window = _window(request, config.data.frames)
    autoencoder = run.autoencoder
    given = FrameReader(config, autoencoder, size, window, warn, max_frames).read(request)
    captions = [prefixed(caption, given.word) for caption in request.captions or ("",)]
    reader = caption_reader(config)
    readable, unreadable = readable_captions(captions, reader, warn)
    num_samples, batch_size = request.candidates or request.num or config.sample.num, request.batch_size or BATCH_SIZE
    solver = choose_solver(request.solver, run, batch=min(batch_size, max(len(readable), 1) * num_samples), warn=warn)
    guidance = request.guidance
    if guidance is None and not any(captions[index].strip() for index in readable):
        guidance = 0.0  # the weight of the configuration is meant for videos of a caption
    plan = None
    if readable:
        plan = plan_videos(
            config,
            [captions[index] for index in readable for _ in range(num_samples)],
            frames=given.frames,
            size=size,
            prefix=given.prefix,
            prefix_pixels=given.pixels,
            solver=solver,
            guidance=guidance,
            annealed_guidance=request.annealed_guidance,
            temperature=request.temperature,
            attention_temperature=request.attention_temperature,
            **denoise_fields(request),
            parameters=request.parameters,
            learned=run.learned_for(solver),
            window=window,
            batch_size=batch_size,
            # The noise of a caption does not depend on which other captions are left out.
            places=[index * num_samples + sample for index in readable for sample in range(num_samples)],
            reader=reader,
            autoencoder=autoencoder,
            aspect=request.aspect,
            fps=request.fps,
        )
    given_pixels = given.prefix if autoencoder is None else given.pixels
    frames = given.frames if autoencoder is None else autoencoder.pixel_frames(given.frames)
    stride = 1 if autoencoder is None else autoencoder.stride
    return VideoRequestPlan(
        request=request,
        plan=plan,
        left_out=tuple((captions[index], reason) for index, reason in unreadable.items()),
        each=num_samples,
        frames=frames,
        size=(size[0] * stride, size[1] * stride),
        given_frames=0 if given_pixels is None else len(given_pixels),
        fps=_fps(config, request, given),
        solver=solver,
    )


def draw_request(
    run: Run, planned: VideoRequestPlan, *, progress: Callable[[int], None] | None = None
) -> SampledVideos:
    """Samples the videos of a plan, and selects the likeliest candidates where it requests them.

    Args:
      run: the trained model.
      planned: the result of `plan_request`.
      progress: called with the number of new frames of the flow whenever some are sampled.

    Raises:
      ValueError: no caption can be read, or the solver cannot stream.
    """
    request, plan = planned.request, planned.plan
    require(plan is not None, "{captions} must contain a caption that the run can read, got none")
    assert plan is not None
    key = jax.random.key(request.seed)
    streams: tuple[StreamReport, ...] = ()
    if request.stream:
        samples, streams = stream_plan(run.params, key, plan, progress=progress, devices=stream_devices())
    else:
        samples = video_sampling.draw_plan(run.params, key, plan, progress=progress)
    if request.candidates is None:
        return SampledVideos(samples, np.arange(len(plan.captions)), None, streams, plan)
    scores = log_likelihoods(
        run.params,
        run.config.flow,
        samples.x,
        samples.text,
        given=plan.given_frames,
        window=plan.kind.window,
        later_cond=plan.later_text,
        batch_size=plan.batch_size,
    )
    kept = likeliest(scores, planned.each, planned.keep)
    return SampledVideos(samples, kept, scores[kept], streams, plan)


def video_size(config: ExperimentConfig, aspect: str | None) -> tuple[int, int]:
    """Rows and columns of videos: as trained, or the trained area in another aspect ratio ("16:9").

    Raises:
      ValueError: an aspect ratio that cannot be read, or that leaves no rows or columns.
    """
    rows, columns = config.flow.image_shape
    if aspect is None:
        return rows, columns
    return image_size(round((rows * columns) ** 0.5), aspect, config.flow.patch_size)


def data_fps(config: ExperimentConfig) -> float:
    """The frame rate of the training data, or `DEFAULT_FPS`."""
    rates = [part.fps for part in (config.data, *config.data.mixture) if part.fps]
    return rates[0] if rates else DEFAULT_FPS


def _fps(config: ExperimentConfig, request: SampleRequest, given: GivenFrames) -> float:
    """The requested frame rate, that of the given clip, or that of the training data."""
    return request.fps or min(given.fps or data_fps(config), FPS_RANGE[1])


def _window(request: SampleRequest, trained: int) -> SlidingWindow:
    """The sliding window of a request, whose default is of the `trained` number of frames."""
    require(request.window is not None or trained >= 2, "a run on clips of {0} frame needs {window}, got none", trained)
    frames = request.window or trained
    if request.context is None:
        return default_window(frames)
    require(
        request.context < frames,
        "{context} must be below the {0} frames of a window, got {1}",
        frames,
        request.context,
    )
    return SlidingWindow(frames, request.context)
