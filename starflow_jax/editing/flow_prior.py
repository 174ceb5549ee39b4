"""A flow as the prior of an inverse problem."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.flows.flow import standard_normal_log_prob
from starflow_jax.flows.noise_gradient import noise_gradient
from starflow_jax.sharding.layout import gathered, placed

# Of a gradient with respect to noise, in each block. Hamiltonian moves are exact whatever they follow, and this many
# leave errors of some percent for 16 tokens.
_SWEEPS = 6


@flax.struct.dataclass
class FlowPrior:
    """The density of a flow under the conditions of B rows; see `posterior.Prior`.

    Attributes:
      distribution: of the flow.
      cond: labels int32 [B] or text states [B, L, text_dim]; None for none.
    """

    distribution: Distribution
    cond: jax.Array | None = None

    def log_prob(self, x: Float[Array, "B *size"]) -> tuple[Float[Array, "B"], Float[Array, "B *size"]]:
        """log p(x | cond) in nats, float32 [B], and the standard normal noise z of x: one pass of the network."""
        z, log_det = self.distribution.inverse_and_log_det(x, self.cond)
        return standard_normal_log_prob(z) + log_det, z

    def data(self, z: Float[Array, "B *size"]) -> tuple[Float[Array, "B *size"], Float[Array, "B"]]:
        """The data of noise z, and log p of it: one call of the solver."""
        x, log_det = self.distribution.transform_and_log_det(z, self.cond)
        return x, standard_normal_log_prob(z) - log_det

    def noise_gradient(self, x: Float[Array, "B *size"], gradient: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        """About the gradient with respect to the noise of x, of a function with this gradient with respect to x."""
        model = self.distribution
        data, slope = (placed(model.layout, values.reshape(-1, *model.data_shape), "batch") for values in (x, gradient))
        found = noise_gradient(model.flow, data, slope, self.cond, noise_level=model.noise_level, sweeps=_SWEEPS)
        result: jax.Array = gathered(model.layout, found).reshape(x.shape)
        return result

    def of_rows(self, rows: Int[Array, "B"]) -> FlowPrior:
        """The prior under the conditions of the given rows."""
        return FlowPrior(self.distribution, None if self.cond is None else jnp.asarray(self.cond)[rows])
