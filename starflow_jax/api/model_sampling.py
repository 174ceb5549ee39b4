"""Drawing images or videos from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.sampling.image_requests import SampledImages
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.sample_run import sample_run
from starflow_jax.sampling.video_requests import SampledVideos


def sample(
    run: Run,
    num: int | None = None,
    *,
    captions: str | Sequence[str] | None = None,
    request: SampleRequest | None = None,
    **fields: Any,
) -> SampledImages | SampledVideos:
    """Draws images, or videos from a model of videos, as `starflow sample` does.

    Both calls do the same:

        sample(run, num=16, label=7)
        sample(run, request=SampleRequest(num=16, label=7))

    Args:
      run: the model.
      num: the number of samples; of captions, the number for each.
      captions: one or more captions.
      request: a complete request, instead of the other arguments.
      **fields: the other fields of `SampleRequest`, such as `label`, `guidance`, `solver`, `frames` and `seed`.

    Returns:
      The samples: `images`, uint8 [n, H, W, C], or `videos`, uint8 [n, T, H, W, C].

    Raises:
      ValueError: an argument that the model cannot be sampled with; the message names it.
    """
    if request is None:
        texts = (captions,) if isinstance(captions, str) else captions
        request = SampleRequest(num=num, captions=None if texts is None else tuple(texts), **fields)
    else:
        check(num is None and captions is None and not fields, "request cannot be combined with other arguments")
    return sample_run(run, request)
