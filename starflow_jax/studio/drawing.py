"""Samples of a model, as far as they are final: frame after frame of videos, all at once of pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.request_errors import RequestError
from starflow_jax.sampling.image_requests import draw_images, plan_images
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.sampling_report import report_on
from starflow_jax.sampling.streaming.stream import VideoStream, stream_devices
from starflow_jax.sampling.video_requests import BATCH_SIZE, VideoRequestPlan, draw_request, plan_request
from starflow_jax.studio.opened_model import OpenedModel, tokens_of
from starflow_jax.studio.uploads import MOST_FRAMES, pixel_shape

# How many samples a page offers. Each number is one compiled program, so that they are few.
PICTURES: tuple[int, ...] = (1, 4, 16, 64)
CLIPS: tuple[int, ...] = (1, 4)
_MOST_CAPTION = 2000  # characters


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """What is final of some samples.

    Attributes:
      pixels: uint8 [n, T, H, W, C], the final frames of every sample, T of 0 before the first; a picture is one frame.
      x: float32 [n, ...], finished samples in the units of the flow, before the noise of training is removed; None
        before the end.
      given: frames that were given; frames: all frames that there will be.
      fps: frames per second.
      first_frame: seconds until the first new frame was final; seconds: until the last one of `pixels`. Both are time
        in which a frame was waited for: compiling, and what passed between two frames until the next was asked for, is
        not part of it.
      compile_seconds: spent on compiling before that.
      depth: network evaluations in sequence; tokens_per_second: of the flow, all samples together. None before the
        end.
      unconverged: chunks of tokens that did not converge; None before the end.
      remarks: what the visitor should know.
      labels: the class of every picture by its name, empty for none; no values for videos and runs without classes.
    """

    pixels: np.ndarray
    x: np.ndarray | None
    given: int
    frames: int
    fps: float
    first_frame: float | None
    seconds: float
    compile_seconds: float
    depth: int | None
    tokens_per_second: float | None
    unconverged: int | None
    remarks: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all samples are final."""
        return self.depth is not None


def check_caption(text: str | None) -> tuple[str, ...] | None:
    """The captions of a request for a text that was entered; None for an empty one."""
    text = " ".join((text or "").split())
    check(len(text) <= _MOST_CAPTION, f"a caption must have at most {_MOST_CAPTION} characters, got {len(text)}")
    return (text,) if text else None


def draw(model: OpenedModel, request: SampleRequest) -> Generator[Drawing, None, None]:
    """Draws samples; closing the generator ends the work, of pictures when their batch is done.

    The samples are those of `starflow sample` with the same request. Videos are streamed where the flow allows it: the
    deep block runs ahead while the caller shows a frame, by a few stages at most, and a visitor who leaves stops it.

    Raises:
      RequestError, ValueError: the request does not fit the model.
    """
    remarks: list[str] = []
    if model.videos:
        planned = plan_request(model.run, request, warn=remarks.append, max_frames=MOST_FRAMES)
        yield from _videos(model, planned, remarks)
        return
    plan = plan_images(model.run, request, warn=remarks.append)
    result = draw_images(model.run, plan)
    report = result.samples.report
    tokens = tokens_of(model.config, report.images)
    yield Drawing(
        pixels=result.images[:, None],
        x=result.samples.noisy[result.kept],
        given=0,
        frames=1,
        fps=1.0,
        first_frame=report.seconds,
        seconds=report.seconds,
        compile_seconds=report.compile_seconds,
        depth=report.evaluations,
        tokens_per_second=tokens / max(report.seconds, 1e-9),
        unconverged=len(report.unconverged),
        remarks=(*remarks, *_not_finite(report.non_finite, report.images)),
        labels=tuple(model.classes[k] if k >= 0 else "" for k in result.labels) if model.classes else (),
    )


def _not_finite(count: int, samples: int) -> tuple[str, ...]:
    """A remark about samples that have values that are not finite, where there are any."""
    return (f"{count} of {samples} samples are not finite; such values are shown black or white.",) if count else ()


def _videos(model: OpenedModel, planned: VideoRequestPlan, remarks: list[str]) -> Generator[Drawing, None, None]:
    plan = planned.plan
    if plan is None:
        raise RequestError("{captions} {0} cannot be read: {1}", *planned.left_out[0])
    count = len(plan.captions)
    check(count <= BATCH_SIZE, f"clips must be at most {BATCH_SIZE} at a time, got {count}")
    new = tokens_of(model.config, count * (plan.kind.frames - plan.given_frames))
    shape = (count, 0, *planned.size, pixel_shape(model)[2])
    drawing = Drawing(
        np.zeros(shape, np.uint8), None, planned.given_frames, planned.frames, planned.fps, None, 0.0, 0.0, None, None,
        None, tuple(remarks),
    )  # fmt: skip
    yield drawing
    try:
        stream = VideoStream(model.run.params, jax.random.key(planned.request.seed), plan, stream_devices())
    except ValueError as error:
        reason = f"{error}; so all frames are shown together at the end"
        yield _together(model, planned, new, dataclasses.replace(drawing, remarks=(*remarks, reason)))
        return
    pixels, x, finite, spent = [], [], np.ones(count, bool), 0.0
    with stream:
        while True:
            begin = time.perf_counter()
            frame = next(stream, None)
            spent += time.perf_counter() - begin
            if frame is None:
                break
            pixels.append(frame.pixels if frame.pixels.ndim == 5 else frame.pixels[:, None])
            x.append(frame.x)
            finite &= np.isfinite(frame.denoised).reshape(count, -1).all(axis=1)
            seconds = max(spent - stream.report.compile_seconds, 0.0)
            new_frame = drawing.first_frame is None and frame.index >= plan.given_frames
            drawing = dataclasses.replace(
                drawing,
                pixels=np.concatenate(pixels, axis=1),
                first_frame=seconds if new_frame else drawing.first_frame,
                seconds=seconds,
                compile_seconds=stream.report.compile_seconds,
            )
            if frame.index < plan.kind.frames - 1:
                yield drawing
    bad = int(count - finite.sum())
    whole = report_on(
        [stream.report.blocks], count=count, batch_size=count, seconds=drawing.seconds,
        compile_seconds=drawing.compile_seconds, non_finite=bad,
    )  # fmt: skip
    yield dataclasses.replace(
        drawing,
        x=np.stack(x, axis=1),
        depth=whole.evaluations,
        tokens_per_second=new / max(drawing.seconds, 1e-9),
        unconverged=len(whole.unconverged),
        remarks=(*drawing.remarks, *_not_finite(bad, count)),
    )


def _together(model: OpenedModel, planned: VideoRequestPlan, tokens: int, drawing: Drawing) -> Drawing:
    """All frames at once, of a flow whose frames cannot be streamed."""
    unstreamed = dataclasses.replace(planned.request, stream=False)
    result = draw_request(model.run, dataclasses.replace(planned, request=unstreamed))
    report = result.samples.report
    return dataclasses.replace(
        drawing,
        pixels=result.videos,
        x=result.samples.x[result.kept],
        first_frame=report.seconds,
        seconds=report.seconds,
        compile_seconds=report.compile_seconds,
        depth=report.evaluations,
        tokens_per_second=tokens / max(report.seconds, 1e-9),
        unconverged=len(report.unconverged),
        remarks=(*drawing.remarks, *_not_finite(report.non_finite, report.images)),
    )


def frame_choices(model: OpenedModel) -> tuple[int, ...]:
    """How many frames of pixels a page offers: as many as trained on, and two and three times as many of the flow."""
    trained, autoencoder = model.config.data.frames, model.run.autoencoder
    counts = (trained, 2 * trained, 3 * trained) if trained > 1 else (trained,)
    return counts if autoencoder is None else tuple(autoencoder.pixel_frames(count) for count in counts)
