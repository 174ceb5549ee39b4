"""Checkpoints of the PyTorch originals: their tensor names and constructor arguments, both ways."""

from starflow_jax.porting.names import from_torch, to_torch
from starflow_jax.porting.original_config import flow_config

__all__ = ["flow_config", "from_torch", "to_torch"]
