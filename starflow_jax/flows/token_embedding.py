"""Embeddings of the classes of single tokens, such as the elements of the atoms of a molecule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.order import AnyArray


class TokenEmbedding(nnx.Module):
    """A vector for each class; 0 for the class -1, which a token without one has."""

    def __init__(self, classes: int, width: int, key: PRNGKeyArray):
        self.table = nnx.Param(0.02 * jax.random.normal(key, (classes, width)))

    @classmethod
    def pair(
        cls, config: FlowConfig, width: int, key: PRNGKeyArray
    ) -> tuple[TokenEmbedding | None, TokenEmbedding | None]:
        """The embedding of the class of the token that a slot reads, and that of the token that it predicts.

        None for a flow without classes of tokens, and in place of the second for one without `look_ahead`. Adding both
        embeddings to the hidden state is what a linear layer on their concatenation with the token computes.
        """
        if not config.token_classes:
            return None, None
        first, second = jax.random.split(key)
        ahead = cls(config.token_classes, width, second) if config.look_ahead else None
        return cls(config.token_classes, width, first), ahead

    def __call__(self, classes: Int[AnyArray, "B n"]) -> Float[Array, "B n D"]:
        """The vectors of classes. One out of range gives NaN: values cannot be checked under a transformation."""
        rows = self.table[...].at[jnp.maximum(classes, 0)].get(mode="fill", fill_value=jnp.nan)
        return jnp.where(classes[..., None] < 0, 0.0, rows)
