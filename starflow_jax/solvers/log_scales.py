"""Log-scales as further channels of the tokens, so that the last sweep of any solver gives the log-determinant.

A solver moves tokens x_i = mean_i(x_<i) + scale_i(x_<i) z_i of c channels. Tokens of 2c channels, whose second half is
log scale_i(x_<i), follow the same recursion with another prediction: the network reads the first half alone. Whatever a
solver returns, its second half was computed by the network evaluation that gave the first half its final value, so the
density of a sample needs no second pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.flows.prediction import Predict, Prediction
from starflow_jax.kernels.jacobi_update.reference import masked_update
from starflow_jax.nn.cache import KVCache


class TrackedEstimate(NamedTuple):
    """A prediction of n tokens with their log-scales; implements `flows.prediction.Estimate` for 2c channels."""

    prediction: Prediction

    def inverse(self, z: Float[Array, "B n c2"]) -> Float[Array, "B n c2"]:
        """x = mean + scale * z and log scale, float32; the second half of z is not read."""
        affine = self.prediction.affine
        return jnp.concatenate([affine.inverse(data_half(z)), jnp.log(affine.scale)], axis=-1)

    def update(
        self, z: Float[Array, "B n c2"], x: Float[Array, "B n c2"], span: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n c2"], Float[Array, "B 2"]]:
        """See `Estimate`; the sums are those of the first half, so that the same iterations are made as without."""
        tokens, sums = self.prediction.update(data_half(z), data_half(x), span)
        log_scales, _ = masked_update(jnp.log(self.prediction.affine.scale), log_scale_half(x), span)
        return jnp.concatenate([tokens, log_scales], axis=-1), sums


def tracked(predict: Predict) -> Predict:
    """The prediction of tokens with log-scales; the network reads and caches the tokens alone."""

    def predict_tracked(
        previous: jax.Array, first: int | Int[Array, ""], cache: KVCache
    ) -> tuple[TrackedEstimate, KVCache]:
        prediction, cache = predict(data_half(previous), first, cache)
        assert isinstance(prediction, Prediction)
        return TrackedEstimate(prediction), cache

    return predict_tracked


def widened(tokens: Float[Array, "B n c"]) -> Float[Array, "B n c2"]:
    """Tokens with log-scales of 0, those of tokens that equal their noise."""
    return jnp.concatenate([tokens, jnp.zeros_like(tokens)], axis=-1)


def data_half(tokens: Float[Array, "B n c2"]) -> Float[Array, "B n c"]:
    """The tokens without their log-scales."""
    return tokens[..., : tokens.shape[-1] // 2]


def log_scale_half(tokens: Float[Array, "B n c2"]) -> Float[Array, "B n c"]:
    """The log-scales of the tokens."""
    return tokens[..., tokens.shape[-1] // 2 :]
