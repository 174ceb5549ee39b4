"""Many Markov chains at once, in one program: a part of their moves, with all that it needs in its arguments."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from starflow_jax.core.choices import ChainMoves
from starflow_jax.editing.langevin_moves import HAMILTONIAN_ACCEPTANCE, MALA_ACCEPTANCE, Point, langevin_move
from starflow_jax.editing.latent_moves import LATENT_ACCEPTANCE, latent_hamiltonian_move, latent_move
from starflow_jax.editing.posterior import Posterior, repeated
from starflow_jax.sampling.resampling import effective_sample_size, systematic

# Bounds of log h and of log b, of which b = 1 draws from the prior.
_LARGEST_LOG_STEPS, _SMALLEST_LOG_STEP = (3.0, 0.0), -30.0


@flax.struct.dataclass
class State:
    """M x C chains in the middle of their moves; a pytree of arrays alone.

    Attributes:
      point: of the B = M C rows.
      origin: the row whose condition each row has, int32 [B].
      log_steps: log h of moves of data, and of moves of noise log b or that of the length of a leapfrog step, float32
        [M, 2].
      variance: the diagonal preconditioner of what moves along a gradient, data or noise, float32 [M, *size].
      start: the standard deviation that the measurement has where `progress` is 0, float32 [M].
      progress: from 0, wide measurements, to 1, the actual ones; float32 [].
      log_weights: of the rows since they were resampled, float32 [M, C].
      key: of all later moves, as data of a key.
    """

    point: Point
    origin: jax.Array
    log_steps: jax.Array
    variance: jax.Array
    start: jax.Array
    progress: jax.Array
    log_weights: jax.Array
    key: jax.Array


class Schedule(NamedTuple):
    """The moves of a part, each float32 [draws, thin].

    Attributes:
      progress: where the standard deviation of the measurement is at a move, see `State.progress`.
      gain: of the adaptation of step sizes; 0 for none.
    """

    progress: jax.Array
    gain: jax.Array


class Trace(NamedTuple):
    """The draws of a part, every one after `thin` moves.

    Attributes:
      x: the data, float32 [draws, B, *size]; z: their noise, where moves along the gradient are of it, else None.
      log_prior, error: of the draws, float32 [draws, B].
      acceptance: mean probability of acceptance of moves of data and of noise, float32 [draws, B, 2].
    """

    x: jax.Array
    z: jax.Array | None
    log_prior: jax.Array
    error: jax.Array
    acceptance: jax.Array


def sigma_at(posterior: Posterior, start: Float[Array, "M"], progress: Float[Array, ""]) -> Float[Array, "M"]:
    """Standard deviations of the measurements between `start` and the actual ones, in geometric progression."""
    logs: jax.Array = (1.0 - progress) * jnp.log(start) + progress * jnp.log(posterior.sigma)
    return jnp.exp(logs)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The static argument of the compiled program.

    Attributes:
      moves: what the chains move: data along the gradient ("mala" by one leapfrog step and "hamiltonian" by several,
        both exact; "langevin" not corrected once its step is adapted), noise ("latent" without a gradient,
        "latent-hamiltonian" along it), or noise and data in turn ("both").
      leapfrog: steps of a move along the gradient.
    """

    moves: ChainMoves
    leapfrog: int


@functools.partial(jax.jit, static_argnums=0)
def run_part(kind: Kind, posterior: Posterior, state: State, schedule: Schedule) -> tuple[State, Trace]:
    """Runs a part of the chains: one program for all parts with schedules of one shape, burn-in or not."""

    def move(state: State, inputs: Schedule) -> tuple[State, tuple[jax.Array, ...]]:
        state = _reweighted(posterior, state, inputs.progress)
        return _moved(kind, posterior, state, inputs)

    def draw(state: State, inputs: Schedule) -> tuple[State, Trace]:
        state, probabilities = jax.lax.scan(move, state, inputs)
        x, terms = state.point
        z = terms.z if kind.moves == "latent-hamiltonian" else None
        return state, Trace(x, z, terms.log_prior, terms.error, jnp.mean(jnp.stack(probabilities, axis=-1), axis=0))

    return jax.lax.scan(draw, state, schedule)


def _moved(
    kind: Kind, posterior: Posterior, state: State, inputs: Schedule
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """One move of data, of noise, or of both, and an adaptation of the step sizes."""
    posterior = posterior.of_rows(state.origin)
    rows, chains = state.point.x.shape[0], state.log_weights.shape[1]
    key, data_key, noise_key = jax.random.split(jax.random.wrap_key_data(state.key), 3)
    sigma = repeated(sigma_at(posterior, state.start, state.progress), rows)
    steps = repeated(jnp.exp(state.log_steps), rows)
    point, of_data, of_noise = state.point, jnp.ones(rows), jnp.ones(rows)
    wanted = jnp.ones(2)
    if kind.moves in ("latent", "both"):
        point, of_noise = latent_move(posterior, point, noise_key, sigma, steps[:, 1], gradient=kind.moves == "both")
        wanted = wanted.at[1].set(LATENT_ACCEPTANCE)
    variance = repeated(state.variance, rows)
    if kind.moves == "latent-hamiltonian":
        point, of_noise = latent_hamiltonian_move(
            posterior, point, noise_key, sigma, steps[:, 1], variance, leapfrog=kind.leapfrog
        )
        wanted = wanted.at[1].set(HAMILTONIAN_ACCEPTANCE)
    elif kind.moves != "latent":
        # A step that is still adapted may be far too long, and without the rule chains would not come back.
        adjusted = kind.moves != "langevin" or inputs.gain > 0.0
        options: dict[str, Any] = {"leapfrog": kind.leapfrog, "adjusted": adjusted}
        point, of_data = langevin_move(posterior, point, data_key, sigma, steps[:, 0], variance, **options)
        best = MALA_ACCEPTANCE if kind.leapfrog == 1 else HAMILTONIAN_ACCEPTANCE
        wanted = wanted.at[0].set(best)
    means = jnp.stack([of_data, of_noise], axis=-1).reshape(-1, chains, 2).mean(axis=1)
    largest = jnp.asarray(_LARGEST_LOG_STEPS)
    log_steps = jnp.clip(state.log_steps + inputs.gain * (means - wanted), _SMALLEST_LOG_STEP, largest)
    state = state.replace(point=point, log_steps=log_steps, key=jax.random.key_data(key))  # type: ignore[attr-defined]
    return state, (of_data, of_noise)


def _reweighted(posterior: Posterior, state: State, progress: Float[Array, ""]) -> State:
    """The state with another standard deviation of the measurement: weights of importance, and rows drawn by them.

    This is annealed importance sampling with resampling (sequential Monte Carlo samplers: Del Moral, Doucet and Jasra
    2006): chains that fit a sharper measurement badly give way to copies of others of the same posterior. Rows are
    resampled where the effective number of them is below half, and when the actual measurement is reached. Chains
    whose error is not finite have the weight 0.
    """
    before, after = (sigma_at(posterior, state.start, at) for at in (state.progress, progress))
    change = 0.5 * (1.0 / before**2 - 1.0 / after**2)
    groups, chains = state.log_weights.shape
    logs = state.log_weights + change[:, None] * state.point.terms.error.reshape(groups, chains)
    logs = jnp.where(jnp.isfinite(logs), logs, -jnp.inf)
    total = jax.scipy.special.logsumexp(logs, axis=1, keepdims=True)
    logs = jnp.where(jnp.isfinite(total), logs - total, -math.log(chains))
    arrived = (progress >= 1.0) & (state.progress < 1.0)
    resample = (effective_sample_size(logs) < 0.5 * chains) | arrived
    key, own = jax.random.split(jax.random.wrap_key_data(state.key))
    chosen = jnp.where(resample[:, None], resampled(own, logs, chains), jnp.arange(chains))
    rows = (chosen + chains * jnp.arange(groups)[:, None]).reshape(-1)
    return state.replace(  # type: ignore[attr-defined]
        point=jax.tree.map(lambda values: values[rows], state.point),
        origin=state.origin[rows],
        log_weights=jnp.where(resample[:, None], -math.log(chains), logs),
        progress=progress,
        key=jax.random.key_data(key),
    )


def resampled(key: PRNGKeyArray, log_weights: Float[Array, "M n"], count: int) -> Int[Array, "M count"]:
    """Systematic resampling within every posterior: the indices of `count` of n draws by their weights."""
    keys = jax.random.split(key, len(log_weights))
    return jax.vmap(lambda key, logs: systematic(key, logs, count))(keys, log_weights)
