"""The mathematics: blocks, flow, guidance, likelihood, denoising."""

from starflow_jax.flows.affine import Affine
from starflow_jax.flows.bits import bits_per_dim
from starflow_jax.flows.denoise import denoise_in_chunks, learned_denoise, score, score_denoise
from starflow_jax.flows.flow import Flow, FlowOutput
from starflow_jax.flows.guidance import Guidance, LinearGuidance
from starflow_jax.flows.iterative_denoise import iterative_denoise
from starflow_jax.flows.likelihood import Objective, objective, standard_normal_log_prob

__all__ = [
    "Affine",
    "Flow",
    "FlowOutput",
    "Guidance",
    "LinearGuidance",
    "Objective",
    "bits_per_dim",
    "denoise_in_chunks",
    "iterative_denoise",
    "learned_denoise",
    "objective",
    "score",
    "score_denoise",
    "standard_normal_log_prob",
]
