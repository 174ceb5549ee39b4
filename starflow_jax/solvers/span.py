"""Tokens of one block that pass through one cache: what stands between a flow and a solver."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.flows.block import Predict
from starflow_jax.flows.flow import Flow, fold_condition
from starflow_jax.flows.guidance import AnyGuidance, Guidance, guided
from starflow_jax.flows.order import Grid
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Report, Solver, Stage, StageReport, State


@flax.struct.dataclass
class Span:
    """One block, its condition and its guidance, over the tokens of one cache. All methods are traceable.

    A span is a pytree whose geometry and solver are static: pass it to compiled functions, build it inside them, or
    close over it. `solve` runs everything; `plan`, `begin` and `advance` do the same stage by stage.

    Attributes:
      flow: the parameters.
      cond: as in `Flow.forward`, B rows.
      guidance: classifier-free guidance of this call, used where this block is guided.
      temperature: scalar that divides the attention logits, or None.
      index: the block.
      grid: as the block sees it (`Flow.block_grid`): of all tokens that pass through the cache, context included.
      folded: frames folded into the batch (frame-local blocks), which therefore has B x folded rows.
      solver: how the block is inverted.
      start: place of the first unsolved token in the whole sequence (given frames and earlier windows included).
      context: tokens in front that are known and are encoded first; `grid` counts them.
    """

    flow: Flow
    cond: jax.Array | None
    guidance: AnyGuidance | None
    temperature: float | jax.Array | None
    index: int = flax.struct.field(pytree_node=False)
    grid: Grid = flax.struct.field(pytree_node=False)
    folded: int = flax.struct.field(pytree_node=False)
    solver: Solver = flax.struct.field(pytree_node=False)
    start: int = flax.struct.field(pytree_node=False, default=0)
    context: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def free(self) -> int:
        """Tokens that cost nothing: without a start token, token 0 has mean 0 and scale 1, it is its own noise."""
        return int(self.flow.blocks[self.index].sos_embed is None and not self.context)

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; after one, the first free + stage.first + stage.length solved tokens of `State.x` are final."""
        count = self.grid.tokens - self.context - self.free
        return self.solver.plan(count, self.start + self.free, self.grid.frame) if count else ()

    @property
    def padding(self) -> int:
        """Slots that the solver may use past the end."""
        count = self.grid.tokens - self.context - self.free
        return self.solver.padding(count, self.start + self.free, self.grid.frame)

    def begin(self, z: jax.Array, context: jax.Array | None = None, history: jax.Array | None = None) -> State:
        """The state before the first stage, with text and context in the cache.

        Args:
          z: [B x folded, n, c] float32 noise of the unsolved tokens, in the block's order.
          context: [B, k, c], the known tokens in front of them, where there are any.
          history: [B, K >= k, c], what came before in the whole sequence, the context at its end; None means `context`.
            A solver that starts from the frame before may look further back than the context.
        """
        batch = z.shape[0]
        block = self.flow.blocks[self.index]
        predict, cache = self._predictor(batch)
        known, offset = block.start_token(batch), 0
        history = context if history is None else history
        if self.free:
            context = history = z[:, :1]
            z = z[:, 1:]
        if context is not None:
            assert history is not None
            offset = context.shape[1]
            # The cache gets every known token but the last, which the first stage reads itself.
            if block.sos_embed is not None:
                _, cache = predict(jnp.concatenate([known, context[:, :-1]], axis=1), 0, cache)
            elif offset > 1:
                _, cache = predict(context[:, :-1], 1, cache)
            known = jnp.concatenate([known, history], axis=1)
        state = self.solver.begin(z, known, cache, padding=self.padding, frame=self.grid.frame)
        return dataclasses.replace(state, offset=offset, free=self.free)

    def advance(
        self, state: State, first: int | jax.Array, length: int | jax.Array, *, kind: Kind
    ) -> tuple[State, StageReport]:
        """Runs one stage; `first` and `length` may be traced, so that one program serves all stages of a kind."""
        return self.solver.advance(self._after_known(state), state, first, length, kind=kind)

    def solve(
        self, z: jax.Array, context: jax.Array | None = None, history: jax.Array | None = None
    ) -> tuple[jax.Array, Report]:
        """All solved tokens [B x folded, n, c] and how it went; arguments as in `begin`."""
        state = self.begin(z, context, history)
        state, report = self.solver.run(self._after_known(state), state, self.plan, self.start + self.free)
        return state.x, report

    def _after_known(self, state: State) -> Predict:
        """The prediction, counted from the first unknown token."""
        # The text goes into a cache here that nobody reads, which the compiler therefore leaves out.
        predict, _ = self._predictor(state.noise.shape[0])

        def after_known(previous, first, cache):
            return predict(previous, first + state.offset, cache)

        return after_known

    def _predictor(self, batch: int) -> tuple[Predict, KVCache]:
        """The block's prediction, guided where it is guided, and a cache with the text in it."""
        block, guidance = self.flow.blocks[self.index], self.guidance
        cond, temperature = self.cond, self.temperature
        if not self.flow.is_guided(self.index, guidance):
            folded = fold_condition(cond, self.folded)
            return block.predictor(folded, self.grid, batch, padding=self.padding, temperature=temperature)
        assert guidance is not None
        if cond is not None:
            pair = (cond, guidance.unconditional(cond))
            cond = jnp.concatenate([fold_condition(c, self.folded) for c in pair])  # type: ignore[misc]
        if not isinstance(guidance, Guidance):
            temperature = guidance.temperatures(batch)
        predict, cache = block.predictor(cond, self.grid, 2 * batch, padding=self.padding, temperature=temperature)
        return guided(predict, guidance, self.grid.tokens), cache
