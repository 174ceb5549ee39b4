"""Draws from posteriors: burn-in, moves, and a report of how well the chains mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from starflow_jax.core.choices import ChainMoves, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer
from starflow_jax.editing.burn_in import (
    burn_in_schedules,
    first_state,
    held,
    preconditioned,
    sampling_schedule,
)
from starflow_jax.editing.chains import Kind, Schedule, State, Trace, run_part
from starflow_jax.editing.convergence import effective_sample_size, split_r_hat
from starflow_jax.editing.posterior import Posterior
from starflow_jax.editing.resuming import ChainPlan, KeptChains
from starflow_jax.sharding.layout import Layout, spread, tree_layout

# The standard deviation that an exact mask has while chains reach it; then visible values are set to theirs.
HARD_SIGMA = 0.05
# Moves that change the noise of an example, and with it all of its values.
MOVES_OF_NOISE: tuple[ChainMoves, ...] = ("latent", "latent-hamiltonian", "both")


@dataclasses.dataclass(frozen=True)
class ChainOptions:
    """How chains run.

    Attributes:
      chains: C, at once for every posterior.
      candidates: draws of the flow for every chain, among which the chains begin, by their weights: one call of the
        solver for each, without a gradient.
      draws: S that every chain keeps.
      thin: moves from one draw to the next.
      burn_in: moves before the first draw, rounded up to whole parts of at most `part` x `thin` moves (two or more
        with `anneal`), in which step sizes are adapted; half of them also anneal.
      moves: "mala" moves data by the Metropolis-adjusted Langevin algorithm, "hamiltonian" by several leapfrog steps,
        "langevin" by unadjusted steps after a burn-in of MALA; "latent-hamiltonian" moves noise by several leapfrog
        steps, "latent" by preconditioned Crank-Nicolson; "both" takes a latent move of noise and a Hamiltonian one of
        data in turn. A move of "latent-hamiltonian" costs as much as tens of MALA; `draws=40, thin=1, burn_in=60` are
        enough for small pictures.
      leapfrog: steps of a Hamiltonian move, of data or of noise.
      step: size of moves of data, in place of an adapted one: h in units of the preconditioner; None adapts it.
      precondition: whether moves along a gradient are scaled by the variance of every value, of data or of noise.
      anneal: whether the burn-in begins with a wide measurement, whose noise falls, and resamples on the way; the
        chains begin at resampled draws of the prior either way.
      part: draws in one call of the compiled program.

    Raises:
      ValueError: a field is out of range.
    """

    chains: int = 16
    candidates: int = 32
    draws: int = 100
    thin: int = 5
    burn_in: int = 1000
    moves: ChainMoves = "mala"
    leapfrog: int = 8
    step: float | None = None
    precondition: bool = True
    anneal: bool = True
    part: int = 10

    def __post_init__(self) -> None:
        for name in ("chains", "candidates", "draws", "thin", "part"):
            check_integer(name, getattr(self, name), minimum=1, maximum=10**7)
        check_integer("burn_in", self.burn_in, minimum=0, maximum=10**8)
        check_choice("moves", self.moves, choices(ChainMoves))
        check_integer("leapfrog", self.leapfrog, minimum=1, maximum=1000)
        for name in ("chains", "candidates", "draws", "thin", "part", "burn_in", "leapfrog"):
            object.__setattr__(self, name, int(getattr(self, name)))  # those of NumPy, too
        check(
            self.step is None or (isinstance(self.step, float) and 0.0 < self.step <= 10.0),
            f"step must be None or a number above 0 and at most 10, got {self.step!r}",
        )
        check(
            self.step is None or self.moves not in ("latent", "latent-hamiltonian"),
            f"step must be None for moves of noise alone, whose sizes are adapted, got {self.step!r} for {self.moves}",
        )

    @property
    def together(self) -> int:
        """Draws in one call of the compiled program: at most `part`, fewer where the burn-in is short."""
        part = min(self.part, self.draws)
        return min(part, max(1, self.burn_in // (2 * self.thin))) if self.burn_in else part

    @property
    def kind(self) -> Kind:
        """What the compiled program depends on."""
        return Kind(self.moves, self.leapfrog if self.moves in ("hamiltonian", "latent-hamiltonian", "both") else 1)


@dataclasses.dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws from M posteriors by C chains of S draws each, and how well the chains mixed.

    Attributes:
      x: float32 [M, C, S, *size], the draws, in the units of the prior.
      log_posterior: float32 [M, C, S], log p(x) + log N(y; A x, sigma^2) without the constants of y, in nats.
      error: float32 [M, C, S], |y - A x|^2.
      acceptance: float64 [M, 2], mean probability of acceptance of moves of data and of noise, NaN for other moves; of
        unadjusted moves that of the rule which they do not follow.
      steps: float64 [M, 2], the sizes of both: h in units of the preconditioner; and b, or the length of a leapfrog
        step of noise.
      origin: int32 [M, C], the chain whose condition each chain has, where the chains of a posterior have several.
      moves: after the burn-in, of every chain; burn_in: before them.
    """

    x: np.ndarray
    log_posterior: np.ndarray
    error: np.ndarray
    acceptance: np.ndarray
    steps: np.ndarray
    origin: np.ndarray
    moves: int
    burn_in: int

    @functools.cached_property
    def ess(self) -> np.ndarray:
        """Effective sample size of every value of x, float64 [M, *size]; NaN where a value does not move."""
        return np.stack([effective_sample_size(x) for x in self.x])

    @functools.cached_property
    def r_hat(self) -> np.ndarray:
        """Split R-hat of every value of x, float64 [M, *size]."""
        return np.stack([split_r_hat(x) for x in self.x])

    @functools.cached_property
    def log_posterior_ess(self) -> np.ndarray:
        """Effective sample size of the log-posterior, float64 [M]."""
        return np.stack([effective_sample_size(values) for values in self.log_posterior])

    def first(self, count: int) -> PosteriorDraws:
        """The draws of the first `count` posteriors."""
        arrays: dict[str, Any] = {name: getattr(self, name)[:count] for name in _ARRAYS}
        return dataclasses.replace(self, **arrays)

    @property
    def mean(self) -> np.ndarray:
        """The posterior mean, float32 [M, *size]."""
        found: np.ndarray = self.x.mean(axis=(1, 2))
        return found

    @property
    def last(self) -> np.ndarray:
        """The last draw of every chain, float32 [M, C, *size]."""
        return self.x[:, :, -1]


_ARRAYS = ("x", "log_posterior", "error", "acceptance", "steps", "origin")


def joined(parts: Sequence[PosteriorDraws]) -> PosteriorDraws:
    """The draws of several parts of the posteriors."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    return dataclasses.replace(parts[0], **arrays)


def sample_posterior(
    posterior: Posterior,
    key: PRNGKeyArray,
    size: tuple[int, ...],
    options: ChainOptions,
    *,
    exact: Float[np.ndarray, "M *size"] | None = None,
    progress: Callable[[int], None] | None = None,
    kept: KeptChains | None = None,
) -> PosteriorDraws:
    """Draws from M posteriors.

    Args:
      posterior: M posteriors, whose prior has M x `options.chains` rows. Where `exact` is given, `free` says which
        values move, and sigma is the one that chains reach before the others are held.
      key: of all draws: equal keys give equal draws on one kind of machine.
      size: of one x.
      options: see `ChainOptions`.
      exact: values that visible parts of x have exactly; None where y has noise.
      progress: called with the number of moves whenever some are done.
      kept: keeps the chains after their parts, and continues those that it has, to the same draws; None keeps nothing.

    Raises:
      ValueError: moves that cannot keep values exact, a posterior without a draw of the prior that is finite, files of
        `kept` that are damaged, or a folder of `kept` that cannot be written.
      ChainsStopped: a signal came, and `kept` has the chains.
    """
    check(
        exact is None or options.moves not in MOVES_OF_NOISE,
        f"moves must be of data (mala, hamiltonian or langevin) where values are held, got {options.moves}",
    )
    part, layout = options.together, tree_layout(posterior.y)
    burn_in = burn_in_schedules(options.burn_in, part, options.thin, anneal=options.anneal)
    schedules = [*burn_in, *[sampling_schedule(part, options.thin)] * -(-options.draws // part)]
    plan = ChainPlan(len(burn_in), len(schedules), part, part * options.thin)

    def begin(posterior: Posterior, key: PRNGKeyArray) -> State:
        return first_state(posterior, key, options.chains, size, options.candidates)

    traces: list[Trace]
    found = None if kept is None else kept.read(jax.eval_shape(begin, posterior, key), plan)
    if found is None:
        with contextlib.nullcontext() if kept is None else kept.beginning(plan):
            state = begin(posterior, key)
            _await(state)
            state = _prepared(_divided(layout, state), options)
        done, traces = 0, []
    else:
        state, done, traces = spread(layout, jax.tree.map(jnp.asarray, found.state)), found.parts, found.traces
        if progress is not None and done:
            progress(done * plan.moves)
    # While the measurement is annealed, values that are known exactly move, too, but for those that were never unknown.
    free = None if posterior.free is None else jnp.ones_like(posterior.free)
    if free is not None and posterior.leading is not None:
        free = jnp.broadcast_to(~posterior.leading, size)
    moving = dataclasses.replace(posterior, free=free)
    waiting = options.anneal and not any(_is_actual(schedule) for schedule in schedules[:done])
    for index in range(done, len(schedules)):
        schedule, burns_in = schedules[index], index < len(burn_in)
        # Laid out alike before every part, so that all of them run one program, continued ones to the same bits.
        state = _divided(layout, state)
        if (index == 0 and not options.anneal) or (waiting and _is_actual(schedule)):
            waiting = False
            state = state if exact is None else _divided(layout, held(posterior, state, jnp.asarray(exact)))
        state, trace = _advance(options, progress, moving if waiting else posterior, state, schedule)
        # The step size is adapted to a preconditioner in the part after it.
        if options.precondition and index < len(burn_in) - 1:
            state = preconditioned(state, trace.x if trace.z is None else trace.z)
        if not burns_in:
            traces.append(jax.device_get(_whole(layout, trace._replace(z=None))))
        if kept is not None:
            kept.advanced(index + 1, _whole(layout, state), None if burns_in else traces[-1], plan)
    return _collected(posterior, _whole(layout, state), traces, options, len(burn_in) * part * options.thin)


def _await(state: State) -> None:
    """Returns when the chains are computed; unlike JAX's own waiting, a signal ends this one at once."""
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(state)):
        time.sleep(0.01)


def _prepared(state: State, options: ChainOptions) -> State:
    """The first state with what the options say of it.

    Raises:
      ValueError: a posterior without a draw of the prior that is finite.
    """
    lost = int(jnp.count_nonzero(~jnp.isfinite(state.start)))
    check(
        lost == 0,
        f"prior must give finite draws and densities, got none among {options.chains * options.candidates} draws for "
        f"{lost} of {len(state.start)} measurements",
    )
    if options.moves == "latent-hamiltonian":
        state = dataclasses.replace(state, variance=jnp.ones_like(state.variance))  # that of z without a measurement
    if options.step is not None:
        state = dataclasses.replace(state, log_steps=state.log_steps.at[:, 0].set(jnp.log(options.step)))
    return state if options.anneal else dataclasses.replace(state, progress=jnp.float32(1.0))


def _is_actual(schedule: Schedule) -> bool:
    """Whether the measurement of a part is the actual one from its first move on."""
    return float(schedule.progress[0, 0]) >= 1.0


def _divided(layout: Layout | None, state: State) -> State:
    """The state with its rows over the devices of a mesh, and all that is not of rows on each of them."""
    if layout is None:
        return state
    where = jax.tree.map(lambda leaf: layout.whole(), state)
    by_rows = jax.tree.map(lambda leaf: layout.batch(leaf.shape), state.point)
    divided: State = jax.device_put(state, where.replace(point=by_rows, origin=layout.batch(state.origin.shape)))
    return divided


def _whole(layout: Layout | None, tree: Any) -> Any:
    """The arrays on each of the devices, where every process can read them."""
    return tree if layout is None else jax.device_put(tree, layout.whole())


def _advance(
    options: ChainOptions,
    progress: Callable[[int], None] | None,
    posterior: Posterior,
    state: State,
    schedule: Schedule,
) -> tuple[State, Trace]:
    if options.step is not None:
        schedule = schedule._replace(gain=jnp.zeros_like(schedule.gain))
    state, trace = run_part(options.kind, posterior, state, schedule)
    if progress is not None:
        jax.block_until_ready(trace.log_prior)
        progress(schedule.gain.size)
    return state, trace


def _collected(
    posterior: Posterior, state: State, traces: list[Trace], options: ChainOptions, burn_in: int
) -> PosteriorDraws:
    groups, chains = state.log_weights.shape

    def together(name: str) -> np.ndarray:
        values = np.concatenate([getattr(trace, name) for trace in traces])[: options.draws]
        values = values.reshape(len(values), groups, chains, *values.shape[2:])
        return np.ascontiguousarray(np.moveaxis(values, 0, 2))

    log_prior, error = together("log_prior"), together("error")
    acceptance = together("acceptance").astype(np.float64).mean(axis=(1, 2))
    of_noise = options.moves in ("latent", "latent-hamiltonian")
    used = [not of_noise, of_noise or options.moves == "both"]
    sigma = np.asarray(posterior.sigma)[:, None, None]
    return PosteriorDraws(
        x=together("x"),
        log_posterior=log_prior - 0.5 * error / sigma**2,
        error=error,
        acceptance=np.where(used, acceptance, np.nan),
        steps=np.where(used, np.exp(np.asarray(state.log_steps, np.float64)), np.nan),
        origin=np.asarray(state.origin).reshape(groups, chains) % chains,
        moves=options.draws * options.thin,
        burn_in=burn_in,
    )
