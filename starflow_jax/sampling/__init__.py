"""Noise to pictures and videos: draw noise, invert the flow, remove the training noise, round to pixels.

- `pictures`: still images of classes.
- `videos`: captions to videos, of a checked request (`video_plan`).
- `stream`: the same videos frame by frame, as they become final (`stream_denoise`).
- `ranking`: the likeliest of several candidates.
- `report`: how a drawing went.
"""

from starflow_jax.sampling.images import (
    Samples,
    check_denoise,
    check_request,
    class_labels,
    default_solver,
    named_solver,
    sample,
    to_pixels,
)
from starflow_jax.sampling.ranking import likeliest, log_likelihoods
from starflow_jax.sampling.sampling_report import SampleReport
from starflow_jax.sampling.streaming.stream import StreamedFrame, StreamReport, VideoStream, stream
from starflow_jax.sampling.videos.draw import Videos, generate
from starflow_jax.sampling.videos.video_plan import VideoPlan, plan_videos

__all__ = [
    "SampleReport",
    "Samples",
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
    "named_solver",
    "plan_videos",
    "sample",
    "stream",
    "to_pixels",
]
