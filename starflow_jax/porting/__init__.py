"""Conversion from and to checkpoints of the PyTorch originals: tensor files, parameter names, constructor arguments."""

from starflow_jax.porting.original_config import flow_config
from starflow_jax.porting.tensor_names import from_torch, to_torch
from starflow_jax.tensor_formats.tensor_opening import open_tensors

__all__ = ["flow_config", "from_torch", "open_tensors", "to_torch"]
