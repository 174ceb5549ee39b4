"""Attention and solver kernels with their plain reference; imported as `starflow_jax.kernels`."""

from starflow_jax.kernels.reference import attention
from starflow_jax.kernels.visibility import Causal, FrameWindow, Full, Visibility

__all__ = ["Causal", "FrameWindow", "Full", "Visibility", "attention"]
