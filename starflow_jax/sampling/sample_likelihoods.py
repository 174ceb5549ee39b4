"""Exact log-likelihoods of samples under the model that drew them."""

from __future__ import annotations

from jaxtyping import Float
from numpy import ndarray

from starflow_jax.sampling.image_requests import SampledImages
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.video_requests import SampledVideos


def sample_log_likelihoods(
    run: Run, samples: SampledImages | SampledVideos, *, batch_size: int = 64
) -> Float[ndarray, " kept"]:
    """log p(x | condition) of the kept samples in nats, float32 [m].

    Samples are scored as the flow drew them, before denoising, each with its own condition. The density of videos is
    that of the frames after the given ones.

    Args:
      run: the model that drew them; samples: what `sample_run` returned; batch_size: samples scored together.

    Raises:
      ValueError: see `ranking.log_likelihoods`.
    """
    if isinstance(samples, SampledImages):
        scores = log_likelihoods(
            run.params, run.config.flow, samples.samples.noisy, samples.cond, batch_size=batch_size
        )
        return scores[samples.kept]
    plan = samples.plan
    scores = log_likelihoods(
        run.params,
        run.config.flow,
        samples.samples.x,
        samples.samples.text,
        given=plan.given_frames,
        window=plan.kind.window,
        later_cond=plan.later_text,
        batch_size=batch_size,
    )
    return scores[samples.kept]
