"""The posterior density of data given a measurement: p(x | y) is proportional to p(x) N(y; A x, sigma^2)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from starflow_jax.editing.operators import Operator


class Prior(Protocol):
    """A density on data with a map to and from standard normal noise z; a pytree. Its rows are those of x."""

    def log_prob(self, x: Float[Array, "B *size"]) -> tuple[Float[Array, "B"], Float[Array, "B *size"]]:
        """log p(x) in nats, float32 [B], and the noise z of x."""
        ...

    def data(self, z: Float[Array, "B *size"]) -> tuple[Float[Array, "B *size"], Float[Array, "B"]]:
        """The data of noise, and log p of it."""
        ...

    def noise_gradient(self, x: Float[Array, "B *size"], gradient: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        """The gradient with respect to the noise of x, of a function with the given gradient with respect to x.

        It may be an approximation, if it is a function of x of the same row.
        """
        ...

    def of_rows(self, rows: Int[Array, "B"]) -> Prior:
        """The prior under the conditions of the given rows."""
        ...


class Terms(NamedTuple):
    """What the density of B points consists of, and its gradient.

    Attributes:
      log_prior: log p(x), float32 [B].
      error: the sum of squares |y - A x|^2, float32 [B].
      z: the noise of x, [B, ...].
      score, slope: the gradients of `log_prior` and of `error` with respect to x, [B, ...].
    """

    log_prior: jax.Array
    error: jax.Array
    z: jax.Array
    score: jax.Array
    slope: jax.Array


@flax.struct.dataclass
class Posterior:
    """M posteriors, each of which C chains sample: B = M C rows, those of one posterior beside one another.

    Attributes:
      prior: of B rows.
      operator: the measurement A.
      y: float32 [M, ...], measurements; of a mask with zeros in place of hidden values, as the operator gives them.
      sigma: float32 [M], standard deviations of their noise.
      free: bool, broadcasts against one x; False where x is known exactly and does not move. None: everything moves.
      leading: bool, broadcasts against one x; True where a mask shows values exactly whose noise follows from them
        alone, as that of the first frames of a clip does: chains begin at draws of p(x | these values). None for none.
    """

    prior: Prior
    operator: Operator
    y: jax.Array
    sigma: jax.Array
    free: jax.Array | None = None
    leading: jax.Array | None = None

    def terms(self, x: Float[Array, "B *size"]) -> Terms:
        """The terms of the density at x, with one pass of the flow and one back."""
        log_prior, prior_back, z = jax.vjp(self.prior.log_prob, x, has_aux=True)
        error, error_back = jax.vjp(self.error, x)
        ones = jnp.ones_like(error)
        return Terms(log_prior, error, z, prior_back(ones)[0], error_back(ones)[0])

    def of_rows(self, rows: Int[Array, "B"]) -> Posterior:
        """The posteriors under the prior's conditions of the given rows."""
        return dataclasses.replace(self, prior=self.prior.of_rows(rows))

    def error(self, x: Float[Array, "B *size"]) -> Float[Array, "B"]:
        """|y - A x|^2 of every row."""
        residual = repeated(self.y, x.shape[0]) - self.operator(x)
        return jnp.sum((residual**2).reshape(x.shape[0], -1), axis=1)

    def moving(self, x: Float[Array, "B *size"]) -> Bool[Array, "B *size"]:
        """Where x moves."""
        return jnp.ones(x.shape, bool) if self.free is None else jnp.broadcast_to(self.free, x.shape)


def log_density(log_prior: Float[Array, "B"], error: Float[Array, "B"], sigma: Float[Array, "B"]) -> Float[Array, "B"]:
    """log p(x) + log N(y; A x, sigma^2) up to a constant of x."""
    return log_prior - 0.5 * error / sigma**2


def repeated(values: Float[Array, "M *rest"], rows: int) -> Float[Array, "B *rest"]:
    """The values of M posteriors for the B rows of their chains."""
    groups, *rest = values.shape
    return jnp.broadcast_to(values[:, None], (groups, rows // groups, *rest)).reshape(rows, *rest)


def of_rows(values: Float[Array, "B"], like: Float[Array, "B *size"]) -> Float[Array, "B ..."]:
    """A number for each row, shaped to broadcast against `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
