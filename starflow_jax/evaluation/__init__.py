"""Evaluation: how good a model is, and what it has to beat.

- `likelihood`: exact log-likelihoods under uniform dequantisation, bits/dim and its uncertainty.
- `classify`: a class-conditional density as a classifier.
- `gaussian`: the class-conditional Gaussian mixture, a baseline for likelihood and classification.
- `frames`, `surprise`, `surprise_pictures`: likelihood of clips by frame and by token, in numbers and pictures.
- `quality`: PSNR and SSIM against clean clips, and what each denoiser gains.
- `frame_quality`, `motion`, `drift`, `clip_quality`, `clip_quality_report`: of any clips, without a model.
- `roc`, `code_length`, `other_images`, `out_of_distribution`, `filtering`, `memorisation`: what likelihood is good for;
  `study`, `study_report`, `study_pictures` show it on a run.
- `recognise`: whether a generated clip shows the digit and the direction of its caption.
- `moments`, `frechet`, `inception_score`, `kernel_distance`, `manifold`, `clip_score`: of features of samples.
- `feature_network`, `inception`, `inception_files`, `digit_features`: what looks at pictures, and clips.
- `network_answers`: by what kept features are known.
- `image_statistics`, `sample_chunks`, `sample_quality`, `quality_report`: the quality of samples by guidance.
- `pictures`: what a model draws, as PNG files.
- `report`: models scored on the same images and draws, and the table that compares them.
"""

from starflow_jax.evaluation.applications.classify import Accuracy, bayes_accuracy, classify
from starflow_jax.evaluation.likelihood.comparison import Scores, score_flow, score_gaussian, scores_table
from starflow_jax.evaluation.likelihood.gaussian import (
    ClassConditionalGaussian,
    GaussianScores,
    fit_class_gaussians,
    score_class_gaussians,
)
from starflow_jax.evaluation.likelihood.images import BitsPerDim, all_dequantised, dequantised, log_probs

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
