"""A flow as a distribution and as a bijection, with the shapes and directions of FlowJAX.

The data x are those of the flow, before any decoding: pixels scaled to [-1, 1), latents, or vectors. Densities are in
nats, with respect to Lebesgue measure on x. Integer pixels have a density only once they are dequantised
(`data.decoding.dequantise`; `bits_per_dim` does both), and a flow that was trained with Gaussian noise has the density
of data with that noise, from which `sample` draws, too: nothing is denoised.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.flow import Flow, standard_normal_log_prob, without_padding
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.order import AnyArray
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, placed, spread
from starflow_jax.solvers import AnySolver, inverse


@flax.struct.dataclass
class Distribution:
    """The distribution p(x | condition) of a flow, and the map from standard normal noise z to x.

    A frozen dataclass and a pytree, whose leaves are the parameters and the noise level: it may be an argument of
    `jax.jit`, `jax.grad` and `jax.vmap`. Every method is a pure function, compiled once for each shape.

    Methods take arrays with any leading axes in front of `shape`, and conditions with any leading axes, which are
    broadcast against each other. A condition is what the flow reads: an integer label (-1: none) or weights of the
    classes [classes] of a flow with classes, classes [N] of the tokens (-1: none) of a flow with `token_classes`, text
    states [L, text_dim] of one with text (`condition` gives those of captions); None for a flow without, and for a flow
    with classes the mean of its class embeddings.

    Of a flow on vectors, `lengths` are the numbers of tokens, 1 to N, with any leading axes. The tokens behind them are
    padding: 0 in samples, without effect in data, and not part of the density. Lengths out of range are an error, and
    NaN where a transformation hides their values.

    As in FlowJAX, the bijection maps noise to data: `transform_and_log_det` samples, and `inverse_and_log_det` gives
    likelihoods. Likelihoods take one parallel pass of the network and can be differentiated in either mode. Samples
    take the loops of a solver, which `jax.jvp` differentiates and `jax.grad` does not.

    Attributes:
      params: of the flow, as `flows.parameters.split` gives them.
      noise_level: that a noise-conditioned flow reads; None for its highest one.
      learned: the learned inverse, for solvers that start from its estimates.
      config: of the flow, static.
      shape: of one x, static: (H, W, C), (T, H, W, C), or another one of as many numbers, such as (N,).
      data_shape: of one x as the flow reads it, static.
      solver: static; draws samples.
      layout: static; the mesh that the parameters are spread over, None for one device.
    """

    params: Params
    noise_level: float | jax.Array | None
    learned: LearnedParams | None
    config: FlowConfig = flax.struct.field(pytree_node=False)
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    data_shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    solver: AnySolver = flax.struct.field(pytree_node=False)
    layout: Layout | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def flow(self) -> Flow:
        """The flow as a module, which shares the arrays of `params`."""
        return merge(abstract(self.config, self.layout)[0], self.params)

    @property
    def cond_shape(self) -> tuple[int, ...] | None:
        """The shape of one condition: (L, text_dim) of trained length L, (N,) of tokens, () for a label, None."""
        if self.config.text_dim:
            return self.config.text_length, self.config.text_dim
        if self.config.token_classes:
            return (self.config.grid[0] * self.config.grid[1],)
        return () if self.config.num_classes else None

    def sample(
        self,
        key: PRNGKeyArray,
        shape: tuple[int, ...] = (),
        condition: Shaped[AnyArray, "..."] | None = None,
        lengths: Int[AnyArray, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Draws samples, float32 [*shape, *leading axes of the condition, *self.shape].

        Sample i, counted in the order of its leading axes, is a function of the key, of i and of its condition. For
        the same key, solver and condition it is what `sample` draws from a run, before denoising.

        Args:
          key: a typed key of `jax.random.key`, or a raw one.
          shape: further leading axes.
          condition, lengths: see the class.

        Raises:
          ValueError: the condition or the lengths do not fit the flow.
        """
        return self.sample_and_log_prob(key, shape, condition, lengths)[0]

    def sample_and_log_prob(
        self,
        key: PRNGKeyArray,
        shape: tuple[int, ...] = (),
        condition: Shaped[AnyArray, "..."] | None = None,
        lengths: Int[AnyArray, "..."] | None = None,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Draws samples as `sample` does, with their log-densities, [*shape, *leading axes of the condition].

        The density is read off the last network evaluation of each token in the solver, not off a second pass. It is
        that of the exact inverse, so it equals `log_prob` of the sample as closely as the solver has converged.
        """
        shape, lengths = tuple(shape), self._checked_lengths(lengths)
        axes = () if lengths is None else jnp.shape(lengths)
        leading = shape + jnp.broadcast_shapes(self.leading_axes(condition), axes)
        z = _draw_noise(self.data_shape, self.layout, self._spread(key), math.prod(leading))
        z = z.reshape(*leading, *self.shape)
        x, log_det = self.transform_and_log_det(z, condition, lengths)
        return x, self._base_log_prob(z, lengths) - log_det

    def log_prob(
        self,
        x: Float[AnyArray, "..."],
        condition: Shaped[AnyArray, "..."] | None = None,
        lengths: Int[AnyArray, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """log p(x | condition) in nats, of the leading axes of x and condition.

        Raises:
          ValueError: x, the condition or the lengths do not fit the flow.
        """
        z, log_det = self.inverse_and_log_det(x, condition, lengths)
        return self._base_log_prob(z, lengths) + log_det

    def transform_and_log_det(
        self,
        z: Float[AnyArray, "..."],
        condition: Shaped[AnyArray, "..."] | None = None,
        lengths: Int[AnyArray, "..."] | None = None,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Noise to data: x of the shape of z (with the leading axes of the condition), and log |dx/dz|."""
        return self._mapped(_transform, z, condition, lengths, "z")

    def inverse_and_log_det(
        self,
        x: Float[AnyArray, "..."],
        condition: Shaped[AnyArray, "..."] | None = None,
        lengths: Int[AnyArray, "..."] | None = None,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Data to noise: z of the shape of x (with the leading axes of the condition), and log |dz/dx|."""
        return self._mapped(_inverse, x, condition, lengths, "x")

    def leading_axes(self, condition: Shaped[AnyArray, "..."] | None) -> tuple[int, ...]:
        """The leading axes of a condition; ValueError where it does not fit the flow."""
        if condition is None:
            return ()
        condition = jnp.asarray(condition)
        own = self._condition_axes(condition)
        return tuple(condition.shape[: condition.ndim - own])

    def _condition_axes(self, condition: Shaped[AnyArray, "..."]) -> int:
        """The number of axes of one condition."""
        config = self.config
        if config.text_dim:
            fits = condition.ndim >= 2 and condition.shape[-1] == config.text_dim
            check(fits, f"condition must be text states [..., L, {config.text_dim}], got shape {condition.shape}")
            return 2
        if config.token_classes:
            fits = condition.ndim >= 1 and (condition.shape[-1],) == self.cond_shape
            check(
                fits and jnp.issubdtype(condition.dtype, jnp.integer),
                f"condition must be classes of tokens, integers [..., {config.grid[0] * config.grid[1]}], got "
                f"{condition.dtype} of shape {condition.shape}",
            )
            return 1
        check(config.num_classes > 0, f"condition must be None for this flow, got shape {condition.shape}")
        if jnp.issubdtype(condition.dtype, jnp.integer):
            return 0
        fits = condition.ndim >= 1 and condition.shape[-1] == config.num_classes
        check(
            fits and jnp.issubdtype(condition.dtype, jnp.floating),
            f"condition must be integer labels [...] or weights of classes [..., {config.num_classes}], "
            f"got {condition.dtype} of shape {condition.shape}",
        )
        return 1

    def _mapped(
        self,
        function: Any,
        values: Float[AnyArray, "..."],
        condition: Shaped[AnyArray, "..."] | None,
        lengths: Int[AnyArray, "..."] | None,
        name: str,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Calls a compiled function with one batch axis, for arrays with any leading axes."""
        own = len(self.shape)
        fits = jnp.ndim(values) >= own and tuple(values.shape[values.ndim - own :]) == self.shape
        check(fits, f"{name} must be [..., {', '.join(map(str, self.shape))}], got shape {jnp.shape(values)}")
        check(
            jnp.issubdtype(values.dtype, jnp.floating),
            f"{name} must be floating point (bits_per_dim takes integer images), got {values.dtype}",
        )
        condition = None if condition is None else jnp.asarray(condition)
        lengths = self._checked_lengths(lengths)
        axes = () if lengths is None else jnp.shape(lengths)
        leading = jnp.broadcast_shapes(values.shape[: values.ndim - own], self.leading_axes(condition), axes)
        flat = jnp.broadcast_to(values, (*leading, *self.shape)).reshape(-1, *self.data_shape)
        if condition is not None:
            one = condition.shape[condition.ndim - self._condition_axes(condition) :]
            condition = jnp.broadcast_to(condition, (*leading, *one)).reshape(-1, *one)
        check(
            condition is not None or not self.config.text_dim,
            f"condition must be text states [..., L, {self.config.text_dim}], got None",
        )
        if lengths is not None:
            lengths = jnp.broadcast_to(lengths, leading).reshape(-1)
        out, log_det = function(self, *self._spread((flat, condition, lengths)))
        return out.reshape(*leading, *self.shape), log_det.reshape(leading)

    def _checked_lengths(self, lengths: Int[AnyArray, "..."] | None) -> Int[Array, "..."] | None:
        """Lengths as an array; ValueError where known values are out of range. Traced ones then give NaN."""
        if lengths is None:
            return None
        count = self.data_shape[0]
        if not isinstance(lengths, jax.core.Tracer):
            known = np.asarray(lengths)
            check(np.issubdtype(known.dtype, np.integer), f"lengths must be integers, got {known.dtype}")
            wrong = known[(known < 1) | (known > count)]
            check(wrong.size == 0, f"lengths must be 1 to {count}, got {', '.join(map(str, wrong[:3]))}")
        return jnp.asarray(lengths)

    def _base_log_prob(self, z: Float[Array, "..."], lengths: Int[AnyArray, "..."] | None) -> Float[Array, "..."]:
        """log N(z; 0, I), of the tokens that are no padding."""
        leading = z.shape[: z.ndim - len(self.shape)]
        if lengths is not None:
            lengths = jnp.broadcast_to(jnp.asarray(lengths), leading).reshape(-1)
        return _normal_log_prob(z.reshape(-1, *self.data_shape), lengths).reshape(leading)

    def _spread(self, tree: Any) -> Any:
        """Arrays from outside of a transformation, on all devices of the layout."""
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
        return tree if traced else spread(self.layout, tree)

    def _prior_log_scale(self) -> Float[Array, ""]:
        """Half the sum of the log-variances of the noise that the last block reads: TARFlow's prior, else 0."""
        variance = self.flow.prior_variance
        if variance is None:
            return jnp.float32(0)
        return 0.5 * jnp.sum(jnp.log(variance[...]))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _draw_noise(shape: tuple[int, ...], layout: Layout | None, key: PRNGKeyArray, count: int) -> Float[Array, "B ..."]:
    """Standard normal noise [count, *shape]; row i is a function of the key and of i."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    return gathered(layout, jax.vmap(lambda k: jax.random.normal(k, shape))(keys))


@jax.jit
def _normal_log_prob(z: Float[Array, "B *size"], lengths: Int[Array, "B"] | None) -> Float[Array, "B"]:
    """log N(z; 0, I), of the tokens that are no padding."""
    return standard_normal_log_prob(z if lengths is None else without_padding(z, lengths), lengths)


@jax.jit
def _transform(
    distribution: Distribution,
    z: Float[Array, "B *size"],
    condition: Shaped[Array, "B *rest"] | None,
    lengths: Int[Array, "B"] | None,
) -> tuple[Float[Array, "B *size"], Float[Array, "B"]]:
    """Noise to data, with log |dx/dz|."""
    learned = distribution.learned
    result = inverse(
        distribution.flow,
        placed(distribution.layout, z, "batch"),
        condition,
        solver=distribution.solver,
        learned=None if learned is None else learned.module(distribution.config, distribution.layout),
        noise_level=distribution.noise_level,
        with_logdet=True,
        lengths=lengths,
    )
    assert result.logdet is not None
    x, log_det = _nan_where_out_of_range(lengths, result.x, result.logdet)
    return gathered(distribution.layout, (x, distribution._prior_log_scale() - log_det))


@jax.jit
def _inverse(
    distribution: Distribution,
    x: Float[Array, "B *size"],
    condition: Shaped[Array, "B *rest"] | None,
    lengths: Int[Array, "B"] | None,
) -> tuple[Float[Array, "B *size"], Float[Array, "B"]]:
    """Data to noise, with log |dz/dx|."""
    flow = distribution.flow
    out = flow.forward(
        placed(distribution.layout, x, "batch"), condition, noise_level=distribution.noise_level, lengths=lengths
    )
    z, log_det = _nan_where_out_of_range(lengths, flow.prior_noise(out.z), out.logdet)
    return gathered(distribution.layout, (z, log_det - distribution._prior_log_scale()))


def _nan_where_out_of_range(
    lengths: Int[Array, "B"] | None, values: Float[Array, "B N *rest"], log_det: Float[Array, "B"]
) -> tuple[Float[Array, "B N *rest"], Float[Array, "B"]]:
    """NaN for examples whose length is not 1 to N: values cannot be checked under a transformation."""
    if lengths is None:
        return values, log_det
    fits = (lengths >= 1) & (lengths <= values.shape[1])
    rows = fits.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(rows, values, jnp.nan), jnp.where(fits, log_det, jnp.nan)
