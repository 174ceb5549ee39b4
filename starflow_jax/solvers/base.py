"""The interface of solvers, which invert one block stage by stage from its prediction alone."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from starflow_jax.core.config.checks import check
from starflow_jax.flows.prediction import Predict
from starflow_jax.nn.cache import KVCache


class Kind(NamedTuple):
    """The static part of a stage; stages of one kind share one compiled body.

    Attributes:
      size: tokens of one network evaluation.
      after_first_frame: whether the stage starts after the end of the video's first frame.
    """

    size: int
    after_first_frame: bool


class Stage(NamedTuple):
    """Tokens first .. first + length - 1, counted from the first unsolved one; they are final after the stage."""

    first: int
    length: int
    kind: Kind


@flax.struct.dataclass
class State:
    """The state between two stages.

    Attributes:
      tokens: [B, num_prefix + num_tokens + padding, c] float32: the prefix, then the current estimate.
      noise: [B, num_tokens + padding, c] float32; noise[:, i] belongs to tokens[:, num_prefix + i].
      cache: keys and values of all tokens before the next stage.
      extra: further state of a solver (a pytree; None for most).
      num_prefix: length of the prefix, tokens that are given; the very first one is the start token.
      num_tokens: tokens to solve for.
      frame: tokens per frame.
      offset: position of the first unsolved token among the tokens that pass through the cache.
      num_trivial: tokens at the end of the prefix that are part of the solution (1 where the first token of a block
        without a start token equals its noise, else 0).
    """

    tokens: jax.Array
    noise: jax.Array
    cache: KVCache
    extra: Any
    num_prefix: int = flax.struct.field(pytree_node=False)
    num_tokens: int = flax.struct.field(pytree_node=False)
    frame: int = flax.struct.field(pytree_node=False)
    offset: int = flax.struct.field(pytree_node=False, default=0)
    num_trivial: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def x(self) -> Float[Array, "B N c"]:
        """The estimate without the prefix and without padding, [B, num_trivial + num_tokens, c]."""
        return self.tokens[:, self.num_prefix - self.num_trivial : self.num_prefix + self.num_tokens]


@flax.struct.dataclass
class StageReport:
    """Statistics of one stage.

    Attributes:
      iterations: [B] int32, iterations until the sample converged.
      evaluations: [] int32, sequential network evaluations.
      tokens: [] int32, tokens that the network processed: evaluations x window x rows. The unconditional half of a
        guided batch is not counted, nor is the encoding of text and given frames.
      residual: [B] float32, last measured relative mean-square change (0 where exact by construction).
      converged: [B] bool; False where the iteration ended before it converged, or where a token of this stage or
        an earlier one is not finite.
      residuals: [checks] float32, every measured residual of the worst sample, NaN where none was measured.
    """

    iterations: jax.Array
    evaluations: jax.Array
    tokens: jax.Array
    residual: jax.Array
    converged: jax.Array
    residuals: jax.Array


@flax.struct.dataclass
class Report(StageReport):
    """Statistics of a sequence of stages ("chunks"): the fields of `StageReport` with a leading axis [chunks], and

    Attributes:
      starts, lengths: [chunks] int32, first token (an index into the whole sequence) and number of tokens of a chunk.
    """

    starts: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Solution:
    """The result of a solver. Failure to converge is reported here and raises nothing.

    Attributes:
      x: [B, n, c] float32, in the block's order.
      report: cost and convergence.
    """

    x: jax.Array
    report: Report


class Solver(abc.ABC):
    """Inverts x_i = mean_i(x_<i) + scale_i(x_<i) z_i.

    A solver is a frozen dataclass (hashable, so that it can be a static argument). `plan` gives the static sequence of
    stages, `begin` the initial state, and `advance` runs one stage. Streaming compiles `advance` once per kind of
    stage and calls it stage by stage; `run` runs all stages inside one program.
    """

    @abc.abstractmethod
    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """The stages that solve for `count` >= 1 tokens, in order and without gaps.

        Args:
          count: tokens to solve for.
          start: index of the first of them in the whole sequence (given frames and earlier windows included).
          frame: tokens per frame.
        """

    @abc.abstractmethod
    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """Runs one stage; `first` and `length` may be traced, `kind` is static.

        Args:
          predict: mean and scale of tokens first .. first + n - 1 from the n tokens before them.
          state: the state after all earlier stages.
          first, length: first token and number of tokens of the stage.
          kind: the static part of the stage.

        Returns:
          The state after the stage, and its statistics.
        """

    def padding(self, count: int, start: int, frame: int) -> int:
        """Number of slots after the last token that stages may read and write: the largest window."""
        return max((stage.kind.size for stage in self.plan(count, start, frame)), default=0) if count else 0

    def guess(self, noise: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """The initial estimate of the tokens, given their noise [B, n, c]."""
        return noise

    @property
    def reads_estimate(self) -> bool:
        """Whether the initial estimate is that of a learned inverse."""
        return getattr(self, "start", None) == "learned"

    def extra(self) -> Any:
        """The initial value of `State.extra`."""
        return None

    def begin(
        self,
        z: Float[Array, "B n c"],
        prefix: Float[Array, "B p c"],
        cache: KVCache,
        *,
        padding: int,
        frame: int,
        estimate: Float[Array, "B n c"] | None = None,
    ) -> State:
        """The state before the first stage.

        Args:
          z: [B, n, c] float32 noise of the tokens to solve for, in the block's order.
          prefix: [B, p, c], the p >= 1 tokens before them (the start token first).
          cache: keys and values of all tokens before the last one of the prefix.
          padding: the result of `padding`.
          frame: tokens per frame.
          estimate: [B, n, c] float32, the initial estimate of the tokens, where `reads_estimate`.

        Raises:
          ValueError: the solver reads an estimate, and none is given.
        """
        if self.reads_estimate:
            check(estimate is not None, "start='learned' needs the learned inverse of the flow, got none")
            # An estimate that is not finite must not affect values computed from it.
            initial = jnp.where(jnp.isfinite(estimate), estimate, 0.0)  # type: ignore[arg-type]
        else:
            initial = self.guess(z)
        widths = ((0, 0), (0, padding), (0, 0))
        tokens = jnp.pad(jnp.concatenate([prefix, initial], axis=1), widths)
        return State(tokens, jnp.pad(z, widths), cache, self.extra(), prefix.shape[1], z.shape[1], frame)

    def run(self, predict: Predict, state: State, plan: Sequence[Stage], start: int) -> tuple[State, Report]:
        """Runs every stage of a plan. Consecutive stages of one kind run under one scan and are compiled once."""
        reports = []
        for kind, members in itertools.groupby(plan, key=lambda stage: stage.kind):

            def step(state: State, stage: Int[Array, "2"], kind: Kind = kind) -> tuple[State, StageReport]:
                return self.advance(predict, state, stage[0], stage[1], kind=kind)

            stages = jnp.asarray([(stage.first, stage.length) for stage in members], jnp.int32)
            state, report = jax.lax.scan(step, state, stages)
            reports.append(report)
        if not reports:
            return state, no_report(state.noise.shape[0])
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports)
        bounds = jnp.asarray([(start + stage.first, stage.length) for stage in plan], jnp.int32)
        return state, Report(**vars(joined), starts=bounds[:, 0], lengths=bounds[:, 1])

    def __call__(
        self,
        predict: Predict,
        z: Float[Array, "B n c"],
        prefix: Float[Array, "B p c"],
        cache: KVCache,
        *,
        start: int,
        frame: int,
        estimate: Float[Array, "B n c"] | None = None,
    ) -> Solution:
        """Solves for all tokens of z; arguments as in `begin` and `plan`."""
        count = z.shape[1]
        padding = self.padding(count, start, frame)
        state = self.begin(z, prefix, cache, padding=padding, frame=frame, estimate=estimate)
        state, report = self.run(predict, state, self.plan(count, start, frame) if count else (), start)
        return Solution(state.x, report)


def no_report(batch: int) -> Report:
    """The report of a sequence without stages."""
    none, rows = jnp.zeros((0,), jnp.int32), (0, batch)
    return Report(
        iterations=jnp.zeros(rows, jnp.int32),
        evaluations=none,
        tokens=none,
        residual=jnp.zeros(rows),
        converged=jnp.zeros(rows, bool),
        residuals=jnp.zeros((0, 0)),
        starts=none,
        lengths=none,
    )


def frame_stages(count: int, start: int, frame: int, size: int) -> tuple[Stage, ...]:
    """One stage per frame, for solvers that may stop at any token; the first may complete a partial frame."""
    bounds = [0, *range(frame - start % frame, count, frame), count]
    return tuple(Stage(a, b - a, Kind(size, False)) for a, b in itertools.pairwise(bounds))


def all_finite(x: Float[Array, "B *rest"]) -> Bool[Array, "B"]:
    """Whether all values of a sample are finite: x [B, ...], result [B] bool."""
    return jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)


def finite_until(tokens: Float[Array, "B n c"], end: int | Int[Array, ""]) -> Bool[Array, "B"]:
    """Whether all tokens of a sample before index `end` are finite: tokens [B, n, c], result [B] bool."""
    ignored = (jnp.arange(tokens.shape[1]) >= end)[None, :, None]
    return all_finite(jnp.where(ignored, 0.0, tokens))
