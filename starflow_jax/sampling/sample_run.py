"""Samples a trained model by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from starflow_jax.sampling.image_requests import SampledImages, draw_images, plan_images
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.video_requests import SampledVideos, draw_request, plan_request


def sample_run(
    run: Run, request: SampleRequest, *, warn: Callable[[str], None] = warnings.warn
) -> SampledImages | SampledVideos:
    """Samples images, or videos from a model of videos, as `starflow sample` does.

    For example `sample_run(open_run(RunRequest(Path("runs/digits"))), SampleRequest(num=4, label=7)).images`.

    Args:
      run: the trained model, see `loaded_run.open_run`.
      request: the request.
      warn: called with messages about captions that are left out, given frames and an old calibration.

    Returns:
      The samples; `.images` or `.videos` are the pixels.

    Raises:
      RequestError, ValueError: the request does not fit the model.
    """
    if run.config.data.frames:
        return draw_request(run, plan_request(run, request, warn=warn))
    return draw_images(run, plan_images(run, request, warn=warn))
