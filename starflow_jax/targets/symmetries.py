"""A flow made symmetric: the mixture of its images under maps that leave a target unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.core.config.checks import check

# A map of points [n, *shape] to points of the same shape.
Symmetry = Callable[[jax.Array], jax.Array]

_TOLERANCE = 1e-4  # of points that are compared, in float32
_MOST_DIMENSIONS = 512  # up to which the determinant of a map is computed


@flax.struct.dataclass
class Symmetrised:
    """The density q_s(x) = mean over the group of q(g x), of a flow q and a finite group of maps g.

    A target with these symmetries has better weights under q_s than under q: the flow needs to cover one point of
    every orbit. A log-density takes one evaluation for each element of the group. It is a `Proposal`, and `tune` and
    `fit` train its flow by the likelihood of q_s.

    Attributes:
      distribution: of the flow.
      symmetries: the elements of the group without the identity, static.
    """

    distribution: Distribution
    symmetries: tuple[Symmetry, ...] = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self.distribution.shape

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the flow."""
        return self.distribution.params

    def leading_axes(self, condition: Any) -> tuple[int, ...]:
        """The axes in front of a condition."""
        return self.distribution.leading_axes(condition)

    def sample_and_log_prob(
        self, key: PRNGKeyArray, shape: tuple[int, ...] = (), condition: Any = None
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """See `Proposal`: samples of the flow, each mapped by a random element of the group."""
        draw_key, choice_key = jax.random.split(key)
        count = math.prod(shape)
        x = self.distribution.sample_and_log_prob(draw_key, (count,), condition)[0]
        choice = jax.random.randint(choice_key, (count,), 0, 1 + len(self.symmetries))
        for number, symmetry in enumerate(self.symmetries, 1):
            x = jnp.where((choice == number).reshape(-1, *(1,) * len(self.shape)), symmetry(x), x)
        return x.reshape(*shape, *self.shape), self.log_prob(x, condition).reshape(shape)

    def log_prob(self, x: Float[Array, "..."], condition: Any = None) -> Float[Array, "..."]:
        """See `Proposal`."""
        leading = x.shape[: x.ndim - len(self.shape)]
        flat = x.reshape(-1, *self.shape)
        images = jnp.stack([flat, *(symmetry(flat) for symmetry in self.symmetries)])
        log_q = self.distribution.log_prob(images, condition)
        return (jax.nn.logsumexp(log_q, axis=0) - math.log(len(images))).reshape(leading)


def symmetrised(distribution: Distribution, symmetries: Sequence[Symmetry]) -> Symmetrised:
    """A flow made symmetric under a finite group of maps.

    For example `symmetrised(flow, [lambda x: -x])`, or `[functools.partial(jnp.roll, shift=k, axis=1) for k in
    range(1, L)]` for the translations of a periodic lattice of side L. Programs are compiled for the functions
    themselves: define them once.

    Args:
      distribution: the flow.
      symmetries: all elements of the group but the identity, each a map of points [n, *shape] that preserves volumes.

    Raises:
      ValueError: there is none, or one does not keep the shape, does not preserve volumes (where x has at most 512
        numbers), is the identity or another one again, or the maps and the identity are not closed under composition.
    """
    check(len(symmetries) > 0, "symmetries must hold at least one map, got none")
    point = _point(distribution.shape)
    orbit = [np.asarray(point)]
    for number, symmetry in enumerate(symmetries):
        image = symmetry(point)
        check(
            image.shape == point.shape,
            f"symmetries[{number}] must keep the shape {list(point.shape)} of points, got {list(image.shape)}",
        )
        if point.size <= _MOST_DIMENSIONS:
            jacobian = jax.jacobian(symmetry)(point).reshape(point.size, point.size)
            volume = float(jnp.linalg.slogdet(jacobian)[1])
            check(
                abs(volume) <= _TOLERANCE * point.size,
                f"symmetries[{number}] must preserve volumes, got a factor of {math.exp(volume):.4g}",
            )
        near = min(float(np.abs(np.asarray(image) - other).max()) for other in orbit)
        check(
            near > _TOLERANCE,
            f"symmetries must hold every map once and not the identity, got symmetries[{number}] twice or the identity",
        )
        orbit.append(np.asarray(image))
    for number, symmetry in enumerate(symmetries):
        for one in orbit:
            mapped = np.asarray(symmetry(jnp.asarray(one)))
            near = min(float(np.abs(mapped - other).max()) for other in orbit)
            check(
                near <= _TOLERANCE,
                f"symmetries must hold a whole group but the identity: one followed by symmetries[{number}] is missing",
            )
    return Symmetrised(distribution, tuple(symmetries))


def images_of_a_point(distribution: Distribution | Symmetrised) -> list[float] | None:
    """The images of a fixed point under the symmetries, by which a record tells groups apart; None without any."""
    if not isinstance(distribution, Symmetrised):
        return None
    images = [np.asarray(symmetry(_point(distribution.shape))) for symmetry in distribution.symmetries]
    return np.round(np.concatenate(images).ravel(), 4).tolist()


def _point(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (1, *shape))


def with_params(distribution: Distribution | Symmetrised, params: dict[str, Any]) -> Distribution | Symmetrised:
    """The same distribution with other parameters of its flow."""
    if isinstance(distribution, Symmetrised):
        inner = distribution.distribution.replace(params=params)  # type: ignore[attr-defined]
        return distribution.replace(distribution=inner)  # type: ignore[attr-defined]
    return distribution.replace(params=params)  # type: ignore[attr-defined]
