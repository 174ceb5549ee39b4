"""Gradients with respect to the noise of a flow, of functions of its data.

Data are x = F^-1(z), so a function f of data has the gradient J^-T grad f with respect to z, J = dz/dx. J is the
product of the Jacobians of the blocks, each triangular in the order of its tokens with 1 / scale on the diagonal.
Hence J^T u = g is solved block by block by

    u <- u + scale (g - J^T u)    from    u = scale g,

which is exact after as many sweeps as there are tokens behind the first, since what is left of the error moves on by a
token in each sweep. A sweep is one pass back through the block, parallel over tokens: nothing goes through the loops of
a solver.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from starflow_jax.flows.conditions import condition_or_default
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.noise_level import NoiseLevel, resolved_level
from starflow_jax.flows.order import AnyArray, Grid


def noise_gradient(
    flow: Flow,
    x: Float[Array, "B *size"],
    gradient: Float[Array, "B *size"],
    cond: Shaped[AnyArray, "B *rest"] | None = None,
    *,
    noise_level: NoiseLevel | None = None,
    sweeps: int | None = None,
) -> Float[Array, "B *size"]:
    """The gradient with respect to the standard normal noise z of x, float32 [B, *size].

    Args:
      flow: of which x are data, as in `Flow.forward`, and `cond` and `noise_level` likewise.
      x: data.
      gradient: of a function with respect to x, at x.
      sweeps: at most so many in each block, for an approximation; None for an exact result.

    Raises:
      ValueError: x, cond or noise_level does not fit the configuration.
    """
    grid = Grid.from_shape(flow.config, x.shape)
    cond = condition_or_default(flow.config, cond, x.shape[0])
    level = resolved_level(flow.config, noise_level, x.shape[0])
    tokens, _ = flow.mapped_tokens(x)
    (found,) = jax.vjp(flow.unmapped_data, tokens)[1](gradient)
    for index, block in enumerate(flow.blocks):
        if not block.is_identity:
            tokens, found = _through_block(flow, index, tokens, found, cond, grid, level, sweeps)
    z = flow.data_of(tokens)
    result: jax.Array = jax.vjp(flow.noise_tokens, flow.prior_noise(z))[1](found)[0]
    return result


def _through_block(
    flow: Flow,
    index: int,
    tokens: Float[Array, "B *grid c"],
    gradient: Float[Array, "B *grid c"],
    cond: Shaped[AnyArray, "B *rest"] | None,
    grid: Grid,
    level: NoiseLevel | None,
    sweeps: int | None,
) -> tuple[Float[Array, "B *grid c"], Float[Array, "B *grid c"]]:
    """The output of a block, and the gradient with respect to it of what has `gradient` with respect to its input."""

    def forward(tokens: Float[Array, "B *grid c"]) -> tuple[Float[Array, "B *grid c"], Float[Array, "B ..."]]:
        output, logdet, _ = flow.block_forward(index, tokens, cond, grid, None, None, level)
        return output, logdet

    output, back, logdet = jax.vjp(forward, tokens, has_aux=True)
    block_grid, _ = flow.block_grid(index, grid)
    rows = logdet.reshape(-1, block_grid.tokens, tokens.shape[-1])
    scale = flow.from_block(index, jnp.exp(-rows), grid, len(tokens))
    exact = block_grid.tokens - 1

    def sweep(_: jax.Array, found: Float[Array, "B *grid c"]) -> Float[Array, "B *grid c"]:
        improved: jax.Array = found + scale * (gradient - back(found)[0])
        return improved

    return output, jax.lax.fori_loop(0, exact if sweeps is None else min(sweeps, exact), sweep, scale * gradient)
