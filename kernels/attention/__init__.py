"""Causal attention: the operation, its reference in plain jnp, and its kernels for TPUs and GPUs."""

from starflow_jax.kernels.attention.api import attention
from starflow_jax.kernels.attention.masks import Causal, CausalFrames, FrameWindow, Full, Visibility

__all__ = ["Causal", "CausalFrames", "FrameWindow", "Full", "Visibility", "attention"]
