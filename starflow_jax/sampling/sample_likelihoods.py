"""Exact log-likelihoods of samples under the model that drew them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from starflow_jax.sampling.image_requests import SampledImages
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.video_requests import SampledVideos


def sample_log_likelihoods(
    run: Run, samples: SampledImages | SampledVideos, *, batch_size: int = 64
) -> Float[np.ndarray, " kept"]:
    """log p(x | condition) of the kept samples in nats, float32 [m].

    Samples are scored as the flow drew them, before denoising, each with its own condition. The density of videos is
    that of the frames after the given ones.

    Args:
      run: the model that drew them; samples: what `sample_run` returned; batch_size: samples scored together.

    Raises:
      ValueError: see `ranking.log_likelihoods`.
    """
    kept = samples.kept
    if isinstance(samples, SampledImages):
        cond = None if samples.cond is None else samples.cond[kept]
        return log_likelihoods(run.params, run.config.flow, samples.samples.noisy[kept], cond, batch_size=batch_size)
    plan, text = samples.plan, samples.samples.text
    return log_likelihoods(
        run.params,
        run.config.flow,
        samples.samples.x[kept],
        None if text is None else np.asarray(text)[kept],
        given=plan.given_frames,
        window=plan.kind.window,
        later_cond=None if plan.later_text is None else np.asarray(plan.later_text)[kept],
        batch_size=batch_size,
    )
