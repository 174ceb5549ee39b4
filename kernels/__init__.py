"""Attention and solver kernels with their plain reference; imported as `starflow_jax.kernels`."""
