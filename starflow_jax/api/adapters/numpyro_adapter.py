"""A flow as a transform of NumPyro, and as its transformed distribution, for `numpyro.sample`."""

from __future__ import annotations

from typing import Any

import jax
from numpyro.distributions import Normal, TransformedDistribution, constraints
from numpyro.distributions.transforms import Transform

from starflow_jax.api.flow_distribution import Distribution


class FlowTransform(Transform):
    """The transform from noise to data of a flow, under a condition that it holds."""

    def __init__(self, distribution: Distribution, condition: jax.Array | None):
        self.distribution = distribution
        self.condition = condition

    @property
    def domain(self) -> constraints.Constraint:
        """Real arrays of the shape of one x."""
        return constraints.independent(constraints.real, len(self.distribution.shape))

    @property
    def codomain(self) -> constraints.Constraint:
        """Real arrays of the shape of one x."""
        return self.domain

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Noise to data, and log |det| of the Jacobian, which `log_abs_det_jacobian` then returns."""
        return self.distribution.transform_and_log_det(x, self.condition)

    def _inverse(self, y: jax.Array) -> jax.Array:
        return self.distribution.inverse_and_log_det(y, self.condition)[0]

    def log_abs_det_jacobian(self, x: jax.Array, y: jax.Array, intermediates: jax.Array | None = None) -> jax.Array:
        """log |det| of the Jacobian from noise x to data y: one parallel pass over y, unless it is known."""
        return -self.distribution.inverse_and_log_det(y, self.condition)[1] if intermediates is None else intermediates

    def tree_flatten(self) -> Any:
        """The distribution and the condition are the leaves."""
        return (self.distribution, self.condition), (("distribution", "condition"), {})

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether both are the same map."""
        return (
            isinstance(other, FlowTransform)
            and other.distribution is self.distribution
            and other.condition is self.condition
        )


def transformed(distribution: Distribution, condition: jax.Array | None) -> TransformedDistribution:
    """`TransformedDistribution` of a standard normal, with the leading axes of the condition as its batch shape."""
    leading = distribution.leading_axes(condition)
    base = Normal().expand((*leading, *distribution.shape)).to_event(len(distribution.shape))
    return TransformedDistribution(base, FlowTransform(distribution, condition))
