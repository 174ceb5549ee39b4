"""Evaluation of models: likelihood, quality of samples and of videos, and applications of exact likelihood.

- `likelihood`: exact log-likelihoods under uniform dequantisation, bits/dim with standard errors, classification by the
  Bayes rule, the Gaussian baseline, likelihood of clips by frame and by token.
- `samples`: FID, KID, Inception Score, precision and recall, CLIP score of generated images against guidance.
- `video`: PSNR, SSIM, motion, drift and caption agreement of clips, and the denoiser ablation.
- `rewards`: what post-training rewards samples for.
- `applications`: out-of-distribution detection, data filtering, ranked sampling, memorisation.

`likelihood` imports none of the others; `samples` and `video` import `likelihood`; `rewards` and `applications` import
all of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starflow_jax.core.deferred_names import deferred_names

if TYPE_CHECKING:
    from starflow_jax.evaluation.likelihood.bayes_classifier import Accuracy, bayes_accuracy, classify
    from starflow_jax.evaluation.likelihood.comparison import Scores, score_flow, score_gaussian, scores_table
    from starflow_jax.evaluation.likelihood.gaussian_baseline import (
        ClassConditionalGaussian,
        GaussianScores,
        fit_class_gaussians,
        score_class_gaussians,
    )
    from starflow_jax.evaluation.likelihood.image_likelihood import (
        BitsPerDim,
        all_dequantised,
        dequantised,
        log_probs,
    )

__all__ = [
    "Accuracy",
    "BitsPerDim",
    "ClassConditionalGaussian",
    "GaussianScores",
    "Scores",
    "all_dequantised",
    "bayes_accuracy",
    "classify",
    "dequantised",
    "fit_class_gaussians",
    "log_probs",
    "score_class_gaussians",
    "score_flow",
    "score_gaussian",
    "scores_table",
]

# Imported when first used, because the command line imports this package to list the metrics of `samples`, and must not
# import JAX for that.
__getattr__ = deferred_names(
    __name__,
    {
        "Accuracy": ".likelihood.bayes_classifier",
        "bayes_accuracy": ".likelihood.bayes_classifier",
        "classify": ".likelihood.bayes_classifier",
        "Scores": ".likelihood.comparison",
        "score_flow": ".likelihood.comparison",
        "score_gaussian": ".likelihood.comparison",
        "scores_table": ".likelihood.comparison",
        "ClassConditionalGaussian": ".likelihood.gaussian_baseline",
        "GaussianScores": ".likelihood.gaussian_baseline",
        "fit_class_gaussians": ".likelihood.gaussian_baseline",
        "score_class_gaussians": ".likelihood.gaussian_baseline",
        "BitsPerDim": ".likelihood.image_likelihood",
        "all_dequantised": ".likelihood.image_likelihood",
        "dequantised": ".likelihood.image_likelihood",
        "log_probs": ".likelihood.image_likelihood",
    },
)
