"""A flow as a bijector of TensorFlow Probability on JAX, and as its transformed distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates import jax as tfp

from starflow_jax.api.flow_distribution import Distribution


class FlowBijector(tfp.bijectors.Bijector):
    """The bijector from noise to data of a flow, under a condition that it holds."""

    def __init__(self, distribution: Distribution, condition: jax.Array | None, name: str = "flow"):
        parameters = {"distribution": distribution, "condition": condition, "name": name}
        super().__init__(forward_min_event_ndims=len(distribution.shape), parameters=parameters, name=name)
        self._distribution = distribution
        self._condition = condition

    def _forward(self, x: jax.Array) -> jax.Array:
        return self._distribution.transform_and_log_det(x, self._condition)[0]

    def _inverse(self, y: jax.Array) -> jax.Array:
        return self._distribution.inverse_and_log_det(y, self._condition)[0]

    def _inverse_log_det_jacobian(self, y: jax.Array) -> jax.Array:
        return self._distribution.inverse_and_log_det(y, self._condition)[1]

    @classmethod
    def _parameter_properties(cls, dtype: object) -> dict[str, object]:
        return {}


def transformed(distribution: Distribution, condition: jax.Array | None) -> tfp.distributions.TransformedDistribution:
    """`TransformedDistribution` of a standard normal, with the leading axes of the condition as its batch shape."""
    leading = distribution.leading_axes(condition)
    normal = tfp.distributions.Normal(jnp.zeros((*leading, *distribution.shape)), 1.0)
    base = tfp.distributions.Independent(normal, reinterpreted_batch_ndims=len(distribution.shape))
    return tfp.distributions.TransformedDistribution(base, FlowBijector(distribution, condition))
