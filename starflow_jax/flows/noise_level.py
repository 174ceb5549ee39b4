"""The noise level as a condition of a network: Fourier features of log t and an MLP (specification, section 6)."""

from __future__ import annotations

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.core.config.checks import check, check_real
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.nn.gelu import gelu
from starflow_jax.nn.linear import Compute, Linear

# The standard deviation of the noise in data: of all examples, or of each.
NoiseLevel = float | Float[Array, ""] | Float[Array, "B"]

_LARGEST_PERIOD = 1e4


class LevelEmbedding(nnx.Module):
    """Maps a noise level t to a vector that is added to the embeddings of all tokens.

    The features are sines and cosines of log(t) at `width / 2` geometrically spaced frequencies from 1 to 1e-4. It is
    computed in float32.
    """

    def __init__(self, width: int, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        exact = dataclasses.replace(compute, dtype="float32")
        self.width = width
        self.up = Linear(width, 4 * width, first, name="up", compute=exact)
        self.down = Linear(4 * width, width, second, name="down", compute=exact)

    def __call__(self, level: Float[Array, ""] | Float[Array, "B"]) -> Float[Array, "rows 1 D"]:
        """The vectors [1 or B, 1, D] of a level, scalar or [B]."""
        half = self.width // 2
        frequencies = jnp.exp(-math.log(_LARGEST_PERIOD) / half * jnp.arange(half))
        angles = jnp.log(jnp.reshape(level, (-1, 1, 1)).astype(jnp.float32)) * frequencies
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        vector: jax.Array = self.down(gelu(self.up(features)))
        return vector


def resolved_level(config: FlowConfig, level: NoiseLevel | None, batch: int) -> NoiseLevel | None:
    """The noise level that the blocks of a flow read: None stands for t1, and for a flow without noise levels.

    Raises:
      ValueError: a level for a flow without noise levels, one that is not above 0, or not a scalar or [batch].
    """
    if config.noise_levels is None:
        check(level is None, "noise_level must be None for a flow without flow.noise_levels, got a level")
        return None
    if level is None:
        return config.noise_levels[1]
    if isinstance(level, numbers.Real):
        check_real("noise_level", float(level))
        check(level > 0, f"noise_level must be above 0, got {level}")
    shape = jnp.shape(level)
    check(shape in ((), (batch,)), f"noise_level must be a scalar or [{batch}], got shape {list(shape)}")
    return level
