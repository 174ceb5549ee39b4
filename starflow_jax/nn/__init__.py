"""Networks: dense layers, norms, rotary positions, attention with a cache, the transformer."""

from starflow_jax.nn.cache import KVCache
from starflow_jax.nn.linear import Linear
from starflow_jax.nn.transformer import Transformer

__all__ = ["KVCache", "Linear", "Transformer"]
