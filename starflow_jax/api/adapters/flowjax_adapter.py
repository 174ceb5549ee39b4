"""A flow as a bijection of FlowJAX, and as its transformed distribution."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.bijections import AbstractBijection
from flowjax.distributions import StandardNormal, Transformed

from starflow_jax.api.flow_distribution import Distribution


class FlowBijection(AbstractBijection):
    """The bijection from noise to data of a flow, whose parameters are its leaves.

    A label is a condition of shape (), which FlowJAX may pass as a floating-point number.
    """

    distribution: Distribution
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def transform_and_log_det(self, x: jax.Array, condition: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Noise to data, and log |det| of the Jacobian."""
        return self.distribution.transform_and_log_det(x, self._condition(condition))

    def inverse_and_log_det(self, y: jax.Array, condition: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Data to noise, and log |det| of the Jacobian."""
        return self.distribution.inverse_and_log_det(y, self._condition(condition))

    def _condition(self, condition: jax.Array | None) -> jax.Array | None:
        if self.cond_shape is None or condition is None:
            return None
        return jnp.rint(condition).astype(jnp.int32) if self.cond_shape == () else condition


class _Bound(AbstractBijection):
    """The bijection of a flow with its condition inside, which may be weights of the classes."""

    distribution: Distribution
    condition: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: None = eqx.field(static=True, default=None)

    def transform_and_log_det(self, x: jax.Array, condition: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        return self.distribution.transform_and_log_det(x, self.condition)

    def inverse_and_log_det(self, y: jax.Array, condition: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        return self.distribution.inverse_and_log_det(y, self.condition)


def transformed(distribution: Distribution, condition: jax.Array | None) -> Transformed:
    """`flowjax.distributions.Transformed` of a standard normal, conditional unless a condition is given."""
    bijection: AbstractBijection
    if condition is None:
        bijection = FlowBijection(distribution, distribution.shape, distribution.cond_shape)
    else:
        bijection = _Bound(distribution, jnp.asarray(condition), distribution.shape)
    return Transformed(StandardNormal(distribution.shape), bijection)
