"""What a solver is: a frozen dataclass that inverts one block, stage by stage, given nothing but its prediction."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.flows.block import Predict
from starflow_jax.nn.cache import KVCache


class Kind(NamedTuple):
    """What decides the program of a stage; stages of one kind share one compiled body.

    Attributes:
      size: tokens that one network evaluation works on.
      past: whether the stage starts after the end of the video's first frame.
    """

    size: int
    past: bool


class Stage(NamedTuple):
    """Tokens first .. first + length - 1 (counted from the first unknown one), final once the stage has run."""

    first: int
    length: int
    kind: Kind


@flax.struct.dataclass
class State:
    """Everything that is carried from one stage to the next.

    Attributes:
      tokens: [B, before + count + padding, c] float32: known tokens, then the current estimate.
      noise: [B, count + padding, c] float32; noise[:, i] belongs to tokens[:, before + i].
      cache: keys and values of everything before the next stage.
      extra: whatever else a solver carries (a pytree; None for most).
      before: known tokens at the front of `tokens`; the very first one is the start token.
      count: unknown tokens.
      frame: tokens a frame.
      offset: place of unknown token 0 among the tokens that pass through the cache.
      free: known tokens at the end of the known ones that belong to the result all the same (0, or 1 where the first
        token of a block without a start token is its own noise).
    """

    tokens: jax.Array
    noise: jax.Array
    cache: KVCache
    extra: Any
    before: int = flax.struct.field(pytree_node=False)
    count: int = flax.struct.field(pytree_node=False)
    frame: int = flax.struct.field(pytree_node=False)
    offset: int = flax.struct.field(pytree_node=False, default=0)
    free: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def x(self) -> jax.Array:
        """The estimate without the known tokens and without padding, [B, free + count, c]."""
        return self.tokens[:, self.before - self.free : self.before + self.count]


@flax.struct.dataclass
class StageReport:
    """How one stage went.

    Attributes:
      iterations: [B] int32, iterations that a sample took part in before it was settled.
      evaluations: [] int32, network evaluations that ran one after another.
      tokens: [] int32, tokens that went through the network: evaluations x window x rows. The second half of a guided
        batch is not counted, nor is the encoding of text and given frames.
      residual: [B] float32, last measured relative mean-square change (0 where exact by construction).
      converged: [B] bool; False where the iteration was ended before it settled, and where a value of this stage or
        of what came before it is not finite.
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
    """How a sequence of stages ("chunks") went: every field of `StageReport` with a leading axis [chunks], and

    Attributes:
      starts, lengths: [chunks] int32, first token (counted over the whole sequence) and tokens of each chunk.
    """

    starts: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Solution:
    """The outcome of inverting one stretch of tokens; outcomes are values, not exceptions.

    Attributes:
      x: [B, n, c] float32, in the block's order.
      report: what it took, and whether it settled.
    """

    x: jax.Array
    report: Report


class Solver(abc.ABC):
    """Inverts x_i = mean_i(x_<i) + scale_i(x_<i) z_i.

    A solver is a frozen dataclass (hashable, so that it can be a static argument). It lays out a static plan of
    stages; `begin` makes the state, and `advance` runs one stage. A caller in a hurry for the first tokens compiles
    `advance` once per kind of stage and calls it stage by stage; `run` does the same inside one program.
    """

    @abc.abstractmethod
    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """The stages of `count` >= 1 unknown tokens that follow `start` others; they follow each other without gaps.

        Args:
          count: unknown tokens.
          start: place of the first of them in the whole sequence (given frames and earlier windows included).
          frame: tokens a frame.
        """

    @abc.abstractmethod
    def advance(
        self, predict: Predict, state: State, first: int | jax.Array, length: int | jax.Array, *, kind: Kind
    ) -> tuple[State, StageReport]:
        """Runs one stage; `first` and `length` may be traced, `kind` is static.

        Args:
          predict: mean and scale of unknown tokens first .. first + n - 1 from the n tokens before them.
          state: after all earlier stages.
          first, length: the stage's tokens.
          kind: of the stage.
        """

    def padding(self, count: int, start: int, frame: int) -> int:
        """Slots past the end that the stages of a plan may read and write: the largest window."""
        return max((stage.kind.size for stage in self.plan(count, start, frame)), default=0) if count else 0

    def guess(self, noise: jax.Array) -> jax.Array:
        """The first estimate of the unknown tokens, of their noise [B, n, c]."""
        return noise

    def extra(self) -> Any:
        """The first value of `State.extra`."""
        return None

    def begin(self, z: jax.Array, known: jax.Array, cache: KVCache, *, padding: int, frame: int) -> State:
        """The state before the first stage.

        Args:
          z: [B, n, c] float32 noise of the unknown tokens, in the block's order.
          known: [B, k, c], the k >= 1 tokens just before them (the start token first).
          cache: holds everything before the last known token.
          padding: as `padding` gave it.
          frame: tokens a frame.
        """
        widths = ((0, 0), (0, padding), (0, 0))
        tokens = jnp.pad(jnp.concatenate([known, self.guess(z)], axis=1), widths)
        return State(tokens, jnp.pad(z, widths), cache, self.extra(), known.shape[1], z.shape[1], frame)

    def run(self, predict: Predict, state: State, plan: Sequence[Stage], start: int) -> tuple[State, Report]:
        """Runs every stage of a plan; stages of one kind under one scan, so that nothing is compiled once a stage."""
        reports = []
        for kind, members in itertools.groupby(plan, key=lambda stage: stage.kind):

            def step(state, stage, kind=kind):
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
        self, predict: Predict, z: jax.Array, known: jax.Array, cache: KVCache, *, start: int, frame: int
    ) -> Solution:
        """Solves for all tokens of z; arguments as in `begin` and `plan`."""
        count = z.shape[1]
        state = self.begin(z, known, cache, padding=self.padding(count, start, frame), frame=frame)
        state, report = self.run(predict, state, self.plan(count, start, frame) if count else (), start)
        return Solution(state.x, report)


def no_report(batch: int) -> Report:
    """The report of a sequence that took no evaluation."""
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
    """One stage a frame, for solvers that may stop anywhere; a first one may complete a frame that has begun."""
    bounds = [0, *range(frame - start % frame, count, frame), count]
    return tuple(Stage(a, b - a, Kind(size, False)) for a, b in itertools.pairwise(bounds))


def all_finite(x: jax.Array) -> jax.Array:
    """Whether every number of a sample is finite: x [B, ...], [B] bool."""
    return jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)


def finite_until(tokens: jax.Array, end: int | jax.Array) -> jax.Array:
    """Whether a sample's tokens before place `end` are all finite: tokens [B, n, c], [B] bool."""
    ahead = (jnp.arange(tokens.shape[1]) >= end)[None, :, None]
    return all_finite(jnp.where(ahead, 0.0, tokens))
