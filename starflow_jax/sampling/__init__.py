"""Samples of a trained flow: draw noise, invert the flow, remove the training noise, round to pixels.

- `sample_requests`: sampling requests, as frozen dataclasses; `loaded_run`: the trained model.
- `sample_run`: samples of a request by one call (`image_requests` and `video_requests` in two steps).
- `image_sampling`: images of labels or text states.
- `videos`: videos of captions (`videos.video_plan`, `videos.video_sampling`).
- `streaming`: videos frame by frame, each frame as soon as it is final.
- `ranking`: the likeliest of several candidates.
- `sampling_report`: cost and convergence of a call.
- `vbench_export`: the videos that VBench scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starflow_jax.core.deferred_names import deferred_names

if TYPE_CHECKING:
    from starflow_jax.sampling.denoising import check_denoise
    from starflow_jax.sampling.image_sampling import (
        Samples,
        check_request,
        class_labels,
        sample,
        to_pixels,
    )
    from starflow_jax.sampling.loaded_run import Run, open_run
    from starflow_jax.sampling.options import default_solver
    from starflow_jax.sampling.ranking import likeliest, log_likelihoods
    from starflow_jax.sampling.sample_requests import RunRequest, SampleRequest, SolverRequest
    from starflow_jax.sampling.sample_run import sample_run
    from starflow_jax.sampling.sampling_report import SampleReport
    from starflow_jax.sampling.streaming.stream import StreamedFrame, StreamReport, VideoStream, stream
    from starflow_jax.sampling.videos.video_plan import VideoPlan, plan_videos
    from starflow_jax.sampling.videos.video_sampling import Videos, generate

__all__ = [
    "Run",
    "RunRequest",
    "SampleReport",
    "SampleRequest",
    "Samples",
    "SolverRequest",
    "StreamReport",
    "StreamedFrame",
    "VideoPlan",
    "VideoStream",
    "Videos",
    "check_denoise",
    "check_request",
    "class_labels",
    "default_solver",
    "generate",
    "likeliest",
    "log_likelihoods",
    "open_run",
    "plan_videos",
    "sample",
    "sample_run",
    "stream",
    "to_pixels",
]

__getattr__ = deferred_names(
    __name__,
    {
        "Samples": ".image_sampling",
        "check_request": ".image_sampling",
        "class_labels": ".image_sampling",
        "sample": ".image_sampling",
        "to_pixels": ".image_sampling",
        "Run": ".loaded_run",
        "open_run": ".loaded_run",
        "check_denoise": ".denoising",
        "default_solver": ".options",
        "likeliest": ".ranking",
        "log_likelihoods": ".ranking",
        "RunRequest": ".sample_requests",
        "SampleRequest": ".sample_requests",
        "SolverRequest": ".sample_requests",
        "sample_run": ".sample_run",
        "SampleReport": ".sampling_report",
        "StreamedFrame": ".streaming.stream",
        "StreamReport": ".streaming.stream",
        "VideoStream": ".streaming.stream",
        "stream": ".streaming.stream",
        "VideoPlan": ".videos.video_plan",
        "plan_videos": ".videos.video_plan",
        "Videos": ".videos.video_sampling",
        "generate": ".videos.video_sampling",
    },
)
