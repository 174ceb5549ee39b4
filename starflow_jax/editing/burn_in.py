"""How chains reach a posterior: from draws of the prior, by measurements whose noise falls to the actual one."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from starflow_jax.editing.chains import Schedule, State, resampled
from starflow_jax.editing.langevin_moves import Point
from starflow_jax.editing.posterior import Posterior, repeated
from starflow_jax.sampling.resampling import effective_sample_size

# The share of the burn-in in which the noise of the measurement falls.
ANNEALED = 0.5
# Factors of the adaptation of step sizes: constant while the target changes, then falling to its end.
_GAIN, _GAIN_DECAY = 0.5, 0.6
# The weight, in draws, of the mean variance of all values in the preconditioner.
_PRIOR_DRAWS = 4.0


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def first_state(
    posterior: Posterior, key: PRNGKeyArray, chains: int, size: tuple[int, ...], candidates: int = 1
) -> State:
    """The chains at draws from the prior, with a measurement whose noise is so wide that some of them fit it.

    Where values are known from the beginning (`posterior.leading`), the draws continue them: they have the noise of
    these values, and new noise elsewhere. Every posterior has `candidates` x `chains` draws, and the noise of the
    measurement is as wide as it takes for their weights exp(-|y - A x|^2 / 2 sigma^2) to be worth `chains` of them. The
    chains are resampled by these weights; draws with values or a density that are not finite have the weight 0. `start`
    is NaN for a posterior without a finite draw.

    Args:
      posterior: M posteriors, whose prior has M x chains rows.
      key: of the draws and of all moves.
      chains: C of every posterior; size: of one x.
      candidates: K, the calls of the solver.
    """
    groups = posterior.y.shape[0]
    rows = groups * chains
    draw_key, move_key, choice_key = jax.random.split(key, 3)
    leading = False if posterior.leading is None else posterior.leading
    known = known_noise = jnp.zeros((rows, *size))
    if posterior.leading is not None:
        known = repeated(posterior.y, rows)
        known_noise = posterior.prior.log_prob(known)[1]

    def drawn(row: Int[Array, "B"], call: Int[Array, "B"]) -> tuple[Float[Array, "B *size"], Float[Array, "B"]]:
        """Draws from the prior and log p of them, functions of a row and of a call."""
        keys = jax.vmap(lambda r, c: jax.random.fold_in(jax.random.fold_in(draw_key, r), c))(row, call)
        noise = jax.vmap(lambda k: jax.random.normal(k, size))(keys)
        x, log_prior = posterior.prior.of_rows(row).data(jnp.where(leading, known_noise[row], noise))
        return jnp.where(leading, known[row], x), log_prior

    def measured(_: None, call: Int[Array, ""]) -> tuple[None, Float[Array, "B"]]:
        x, log_prior = drawn(jnp.arange(rows), jnp.full(rows, call))
        error = posterior.error(x)
        usable = jnp.isfinite(x).reshape(rows, -1).all(axis=1) & jnp.isfinite(log_prior) & jnp.isfinite(error)
        return None, jnp.where(usable, error, jnp.inf)

    _, errors = jax.lax.scan(measured, None, jnp.arange(candidates))
    # [M, K C]: of every posterior, the draws of all calls.
    errors = jnp.moveaxis(errors.reshape(candidates, groups, chains), 0, 1).reshape(groups, -1)
    start = jnp.maximum(posterior.sigma, _wide_enough(errors, chains))
    chosen = resampled(choice_key, -0.5 * errors / start[:, None] ** 2, chains)
    # Drawn again, under the condition of the row that it was drawn for.
    row = (chosen % chains + chains * jnp.arange(groups)[:, None]).reshape(-1).astype(jnp.int32)
    x, _ = drawn(row, (chosen // chains).reshape(-1))
    return State(
        point=Point(x, posterior.of_rows(row).terms(x)),
        origin=row,
        log_steps=jnp.log(jnp.tile(jnp.asarray([math.prod(size) ** (-1 / 3), 0.5]), (groups, 1))),
        variance=_shrunk(x.reshape(groups, chains, *size)),
        start=start,
        progress=jnp.float32(0.0),
        log_weights=jnp.full((groups, chains), -math.log(chains), jnp.float32),
        key=jax.random.key_data(move_key),
    )


def _wide_enough(errors: Float[Array, "M n"], wanted: int) -> Float[Array, "M"]:
    """The smallest standard deviation at which the weights of n draws are worth `wanted` of them, at most half of n.

    Infinite errors have the weight 0; NaN where all are.
    """
    wanted = min(wanted, max(1, errors.shape[1] // 2))

    def halved(bounds: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = effective_sample_size(-0.5 * errors * jnp.exp(-2.0 * middle)[:, None]) >= wanted
        return (jnp.where(enough, low, middle), jnp.where(enough, middle, high)), None

    largest = jnp.max(errors, axis=1, where=jnp.isfinite(errors), initial=-jnp.inf)
    widest = jnp.log(jnp.sqrt(largest) + 1e-6) + 2.0  # NaN of -inf
    (_, high), _ = jax.lax.scan(halved, (widest - 14.0, widest), length=30)
    return jnp.exp(high)


def burn_in_schedules(moves: int, draws: int, thin: int, *, anneal: bool) -> list[Schedule]:
    """The parts of a burn-in of at least `moves` moves, each of `draws` x `thin`.

    Args:
      anneal: whether the noise of the measurement falls from a wide one, in the first half.
    """
    parts = -(-moves // (draws * thin))
    annealed = max(1, round(ANNEALED * parts)) if anneal and parts else 0
    if anneal and parts == 1:
        parts = 2
    size = draws * thin
    progress = np.ones(parts * size)
    progress[: annealed * size] = np.linspace(1.0 / (annealed * size), 1.0, annealed * size) if annealed else 1.0
    rest = np.arange(1, (parts - annealed) * size + 1)
    falling = (1.0 + rest / (0.1 * len(rest) + 1.0)) ** -_GAIN_DECAY
    gain = _GAIN * np.concatenate([np.ones(annealed * size), falling])
    shaped = (values.reshape(parts, draws, thin).astype(np.float32) for values in (progress, gain))
    return [Schedule(jnp.asarray(p), jnp.asarray(g)) for p, g in zip(*shaped, strict=True)]


def sampling_schedule(draws: int, thin: int) -> Schedule:
    """A part after the burn-in: nothing is adapted."""
    return Schedule(jnp.ones((draws, thin)), jnp.zeros((draws, thin)))


@jax.jit
def preconditioned(state: State, moving: Float[Array, "draws B *size"]) -> State:
    """The state with the variance of every value over chains and draws of a part as its preconditioner.

    Args:
      moving: what moves along the gradient, data or noise, in these draws.
    """
    groups, chains = state.log_weights.shape
    draws, _, *size = moving.shape
    x = jnp.moveaxis(moving.reshape(draws, groups, chains, *size), 0, 1).reshape(groups, -1, *size)
    return state.replace(variance=_shrunk(x))  # type: ignore[attr-defined]


def _shrunk(x: Float[Array, "M n *size"]) -> Float[Array, "M *size"]:
    """Variances over n draws, shrunk towards their mean, as far as n is small."""
    count = x.shape[1]
    variance = jnp.var(x, axis=1)
    mean = jnp.mean(variance, axis=tuple(range(1, variance.ndim)), keepdims=True)
    floor = 1e-3 * mean + 1e-12
    return jnp.maximum((count * variance + _PRIOR_DRAWS * mean) / (count + _PRIOR_DRAWS), floor)


@jax.jit
def held(posterior: Posterior, state: State, values: Float[Array, "M *size"]) -> State:
    """The state with the values that do not move in place of those that the chains have."""
    x = state.point.x
    x = jnp.where(posterior.moving(x), x, repeated(values, x.shape[0]))
    return state.replace(point=Point(x, posterior.of_rows(state.origin).terms(x)))  # type: ignore[attr-defined]
