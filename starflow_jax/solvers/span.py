"""The inversion of one block over one key/value cache, which connects a flow with a solver."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.flows.conditions import fold_condition
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance, Guidance
from starflow_jax.flows.noise_level import NoiseLevel
from starflow_jax.flows.order import Grid
from starflow_jax.flows.prediction import Predict, guided
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Report, Solver, Stage, StageReport, State
from starflow_jax.solvers.log_scales import tracked, widened


@flax.struct.dataclass
class Span:
    """One block, its condition and its guidance, over the tokens of one cache. All methods are traceable.

    A span is a pytree whose geometry and solver are static; it may be an argument of compiled functions or be built
    inside them. `solve` runs all stages; `plan`, `begin` and `advance` run them one by one.

    Attributes:
      flow: the parameters.
      cond: as in `Flow.forward`, B rows.
      guidance: classifier-free guidance of this call, used where this block is guided.
      temperature: scalar that divides the attention logits, or None.
      noise_level: scalar that a noise-conditioned flow reads; None for its t1.
      index: the block.
      grid: the block's grid (`Flow.block_grid`) of all tokens that pass through the cache, context included.
      folded: frames folded into the batch (frame-local blocks), which therefore has B x folded rows.
      solver: the solver of the block.
      start: index of the first unsolved token in the whole sequence (given frames and earlier windows included).
      context: number of given tokens that are encoded first; `grid` includes them.
      with_log_scales: whether all tokens, those passed to `begin` included, have log-scales (`log_scales`).
    """

    flow: Flow
    cond: jax.Array | None
    guidance: AnyGuidance | None
    temperature: float | Float[Array, ""] | None
    noise_level: NoiseLevel | None = None
    index: int = flax.struct.field(pytree_node=False, kw_only=True)
    grid: Grid = flax.struct.field(pytree_node=False, kw_only=True)
    folded: int = flax.struct.field(pytree_node=False, kw_only=True)
    solver: Solver = flax.struct.field(pytree_node=False, kw_only=True)
    start: int = flax.struct.field(pytree_node=False, default=0)
    context: int = flax.struct.field(pytree_node=False, default=0)
    with_log_scales: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def num_trivial(self) -> int:
        """1 where token 0 equals its noise: without a start token it has mean 0 and scale 1. Else 0."""
        return int(self.flow.blocks[self.index].sos_embed is None and not self.context)

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; after each, the first num_trivial + stage.first + stage.length tokens of `State.x` are final."""
        count = self.grid.tokens - self.context - self.num_trivial
        return self.solver.plan(count, self.start + self.num_trivial, self.grid.frame) if count else ()

    @property
    def padding(self) -> int:
        """Number of slots after the last token that the solver may use."""
        count = self.grid.tokens - self.context - self.num_trivial
        return self.solver.padding(count, self.start + self.num_trivial, self.grid.frame)

    def begin(
        self,
        z: Float[Array, "B n c"],
        context: Float[Array, "B p c"] | None = None,
        history: Float[Array, "B history c"] | None = None,
        estimate: Float[Array, "B n c"] | None = None,
    ) -> State:
        """The state before the first stage, with text and context in the cache.

        Args:
          z: [B x folded, n, c] float32 noise of the unsolved tokens, in the block's order.
          context: [B, p, c], the given tokens before them, or None.
          history: [B, history >= p, c], tokens of the whole sequence up to and including the context; None means
            `context`. A solver that starts from the previous frame may read further back than the context.
          estimate: [B x folded, n, c], initial estimate of the tokens, for a solver that reads one.
        """
        batch = z.shape[0]
        block = self.flow.block(self.index)
        predict, cache = self._predictor(batch)
        prefix, offset = block.start_token(batch), 0
        if self.with_log_scales:
            prefix = widened(prefix)
        history = context if history is None else history
        if self.num_trivial:
            context = history = z[:, :1]
            z = z[:, 1:]
            estimate = None if estimate is None else estimate[:, 1:]
        if context is not None:
            assert history is not None
            offset = context.shape[1]
            # All tokens of the prefix but the last are cached; the first stage reads the last one.
            if block.sos_embed is not None:
                _, cache = predict(jnp.concatenate([prefix, context[:, :-1]], axis=1), 0, cache)
            elif offset > 1:
                _, cache = predict(context[:, :-1], 1, cache)
            prefix = jnp.concatenate([prefix, history], axis=1)
        state = self.solver.begin(z, prefix, cache, padding=self.padding, frame=self.grid.frame, estimate=estimate)
        return dataclasses.replace(state, offset=offset, num_trivial=self.num_trivial)

    def advance(
        self, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """Runs one stage; `first` and `length` may be traced, so that one program serves all stages of a kind."""
        return self.solver.advance(self._from_first_unsolved(state), state, first, length, kind=kind)

    def solve(
        self,
        z: Float[Array, "B n c"],
        context: Float[Array, "B p c"] | None = None,
        history: Float[Array, "B history c"] | None = None,
        estimate: Float[Array, "B n c"] | None = None,
    ) -> tuple[Float[Array, "B n c"], Report]:
        """The solved tokens [B x folded, n, c] and the report; arguments as in `begin`."""
        state = self.begin(z, context, history, estimate)
        state, report = self.solver.run(
            self._from_first_unsolved(state), state, self.plan, self.start + self.num_trivial
        )
        return state.x, report

    def _from_first_unsolved(self, state: State) -> Predict:
        """The prediction with token indices relative to the first unsolved token."""
        # The cache that the text is written to is not used here, and the compiler removes it.
        predict, _ = self._predictor(state.noise.shape[0])

        def shifted(previous: jax.Array, first: int | Int[Array, ""], cache: KVCache) -> tuple[Any, KVCache]:
            return predict(previous, first + state.offset, cache)

        return shifted

    def _predictor(self, batch: int) -> tuple[Predict, KVCache]:
        """The prediction of the tokens, with log-scales where they have these, and a cache that holds the text."""
        predict, cache = self._token_predictor(batch)
        return (tracked(predict) if self.with_log_scales else predict), cache

    def _token_predictor(self, batch: int) -> tuple[Predict, KVCache]:
        """The block's prediction, guided where the block is guided, and a cache that holds the text."""
        block, guidance = self.flow.block(self.index), self.guidance
        cond, temperature = self.cond, self.temperature
        options: dict[str, Any] = {"padding": self.padding, "noise_level": self.noise_level}
        if not self.flow.is_guided(self.index, guidance):
            folded = fold_condition(cond, self.folded)
            return block.predictor(folded, self.grid, batch, temperature=temperature, **options)
        assert guidance is not None
        if cond is not None:
            pair = (cond, guidance.unconditional(cond))
            cond = jnp.concatenate([fold_condition(c, self.folded) for c in pair])  # type: ignore[misc]
        if not isinstance(guidance, Guidance):
            temperature = guidance.temperatures(batch)
        predict, cache = block.predictor(cond, self.grid, 2 * batch, temperature=temperature, **options)
        return guided(predict, guidance, self.grid.tokens), cache
