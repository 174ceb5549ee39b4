"""Attention and solver kernels with their plain reference; imported as `starflow_jax.kernels`."""

from starflow_jax.kernels.dispatch import attention
from starflow_jax.kernels.visibility import Causal, CausalFrames, FrameWindow, Full, Visibility

__all__ = ["Causal", "CausalFrames", "FrameWindow", "Full", "Visibility", "attention"]
