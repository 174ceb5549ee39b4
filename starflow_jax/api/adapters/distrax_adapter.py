"""A flow as a bijector of distrax, and as its transformed distribution."""

from __future__ import annotations

import distrax
import jax
import jax.numpy as jnp

from starflow_jax.api.flow_distribution import Distribution


class FlowBijector(distrax.Bijector):
    """The bijector from noise to data of a flow, under a condition that it holds."""

    def __init__(self, distribution: Distribution, condition: jax.Array | None):
        super().__init__(event_ndims_in=len(distribution.shape))
        self._distribution = distribution
        self._condition = condition

    def forward_and_log_det(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Noise to data, and log |det| of the Jacobian."""
        return self._distribution.transform_and_log_det(x, self._condition)

    def inverse_and_log_det(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Data to noise, and log |det| of the Jacobian."""
        return self._distribution.inverse_and_log_det(y, self._condition)

    def same_as(self, other: distrax.Bijector) -> bool:
        """Whether both are the same map."""
        return (
            isinstance(other, FlowBijector)
            and other._distribution is self._distribution
            and other._condition is self._condition
        )


def transformed(distribution: Distribution, condition: jax.Array | None) -> distrax.Transformed:
    """`distrax.Transformed` of a standard normal, with the leading axes of the condition as its batch shape."""
    leading = distribution.leading_axes(condition)
    normal = distrax.Normal(jnp.zeros((*leading, *distribution.shape)), 1.0)
    base = distrax.Independent(normal, reinterpreted_batch_ndims=len(distribution.shape))
    return distrax.Transformed(base, FlowBijector(distribution, condition))
