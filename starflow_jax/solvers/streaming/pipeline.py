"""A pipelined inverse: the deep block continues while its finished frames pass through the shallow blocks.

Shallow blocks that run inside frames depend on one frame only, so that a frame is final once the deep block and then
the shallow blocks have processed it (arXiv 2511.20462, section 3; its released code does not do this). The results are
those of `inverse`: the deep block runs the same stages and the frames pass through the same solvers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.conditions import check_guidance, condition_or_default
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.order import AnyArray, Grid, block_order
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport
from starflow_jax.solvers.inverse import BlockReport
from starflow_jax.solvers.inverse_arguments import SlidingWindow, check_estimates, check_later
from starflow_jax.solvers.one_pass import is_approximate
from starflow_jax.solvers.per_block import AnySolver, PerBlock, solver_for_block
from starflow_jax.solvers.sequential import Sequential
from starflow_jax.solvers.span import Span
from starflow_jax.solvers.streaming import stage_programs as programs
from starflow_jax.solvers.streaming.placement import placements
from starflow_jax.solvers.streaming.read_ahead import Ahead
from starflow_jax.solvers.streaming.stage_programs import Inputs, Window

R = TypeVar("R")

# Called with the index of the first frame and with the frames, [B, H, W, C] each, dispatched but not awaited.
Then = Callable[[int, tuple[jax.Array, ...]], R]

# On a separate device, the deep block may be this many stages ahead of the frames that have been requested.
_AHEAD = 3


class _Turn(NamedTuple):
    """A stage, and the frames of the window that are final after it: the first and their number."""

    step: programs.Step
    stage: Stage
    first: int
    frames: int


class FrameStream:
    """Inverts videos of one shape frame by frame.

    `compile` builds all programs; `run` generates, and may be called repeatedly. The number of programs depends on
    shapes and configurations only, not on the number of stages, frames, windows or streams.

    Attributes:
      deep, shallow: placements of the deep block and of the other blocks.
      reports: of the last run, set when it has ended: one per block, deep block first, on the host. Frame-local
        blocks report on every group of frames.
    """

    def __init__(
        self,
        params: Params,
        config: FlowConfig,
        shape: tuple[int, ...],
        cond: Shaped[AnyArray, "B *rest"] | None = None,
        *,
        given: int = 0,
        solver: AnySolver | None = None,
        guidance: AnyGuidance | None = None,
        window: SlidingWindow | None = None,
        temperature: float | Float[Array, ""] | None = None,
        later_cond: Shaped[AnyArray, "B *rest"] | None = None,
        learned: LearnedParams | None = None,
        devices: Sequence[jax.Device] | None = None,
        ready: bool = True,
    ):
        """Checks the arguments and places the parameters on the devices.

        Args:
          params: from `flows.parameters.split`.
          config: of the flow.
          shape: of the noise, [B, T, H, W, C].
          cond, solver, guidance, window, temperature, later_cond: as in `inverse`.
          given: number P < T of given frames at the beginning, an argument of `run`.
          learned: the learned inverse, for solvers that start from its estimates. They are computed before the first
            frame, by one pass over the noise of all frames, that of given frames as it is passed, and with `cond` for
            all windows.
          devices: one for the deep block and one for the shallow blocks and later work, or one for all. None leaves
            everything where it is.
          ready: as in `inverse`.

        Raises:
          ValueError: the arguments contradict each other or the configuration, or a block other than the deep one
            spans frames.
        """
        definition, leaves = abstract(config)
        flow = merge(definition, leaves)  # shapes only
        self.config, self.shape, self.given = config, tuple(shape), given
        self.grid = Grid.from_shape(config, self.shape)
        check_streaming(flow, self.grid, self.shape, given, window)
        cond = condition_or_default(config, cond, shape[0])
        check_later(cond, later_cond)
        check_guidance(config, guidance, cond)
        count = config.num_blocks
        self._solvers = tuple(solver_for_block(solver or Sequential(), index, count) for index in range(count))
        for block_solver in self._solvers:
            check_estimates(block_solver, learned)
        check(
            not is_approximate(PerBlock(self._solvers)),
            "a stream draws exact frames only; solver must not be 'one-pass'",
        )
        self.deep, self.shallow = placements(devices)
        deep_name = str(count - 1)
        if ready:  # every stage is a call of a program: once here, for all of them
            params = programs.ready(config, params)
        blocks = params["blocks"]
        shared = {"shared": params["shared"]} if "shared" in params else {}
        self._deep_params = self.deep.put({**shared, "blocks": {deep_name: blocks[deep_name]}})
        shallow_blocks = {name: block for name, block in blocks.items() if name != deep_name}
        self.shallow_params = self.shallow.put({**params, "blocks": shallow_blocks})
        inputs = Inputs(cond, guidance, None if temperature is None else jnp.float32(temperature))
        self._deep_inputs, self._shallow_inputs = self.deep.put(inputs), self.shallow.put(inputs)
        self._learned = None if learned is None else self.deep.put(learned)
        later = inputs if later_cond is None else inputs._replace(cond=later_cond)
        self._later_inputs = self.deep.put(later)
        self._windows = _windows(self._solvers[-1], config, self.grid, given, window)
        self._history = 0 if window is None else window.frames * self.grid.frame
        self._turns = {w: _turns(w, w.span(flow, inputs)) for w in {w for w, _ in self._windows}}
        # Running ahead on a shared device would delay the first frame.
        self._allowed = 1 if self.deep == self.shallow else 1 + _AHEAD
        self._stages: list[tuple[int, StageReport]] = []
        self._groups: list[tuple[BlockReport, ...]] = []
        self.reports: tuple[BlockReport, ...] = ()

    def compile(self) -> None:
        """Compiles all programs ahead of `run`; those in the cache cost little."""
        deep, shallow, config = self.deep, self.shallow, self.config
        z = deep.struct(jax.ShapeDtypeStruct(self.shape, jnp.float32))
        programs.ordered.lower(config, z).compile()
        ordered = deep.struct(jax.eval_shape(functools.partial(programs.ordered, config), z))
        estimate, estimated = None, None
        if self._learned is not None:
            estimating = (config, self._learned, self._deep_inputs, z)
            programs.estimates.lower(*estimating).compile()
            estimate, others = programs.estimates.eval_shape(*estimating)
            estimate, estimated = deep.struct(estimate), shallow.struct(others)
        history = None
        if self.given:
            prefix = jax.ShapeDtypeStruct((self.shape[0], self.given, *self.shape[2:]), jnp.float32)
            arguments = (config, self.shallow_params, self._shallow_inputs, shallow.struct(prefix))
            programs.entering.lower(*arguments).compile()
            history = deep.struct(programs.entering.eval_shape(*arguments))
        state, compiled = None, set()
        for window, _ in self._windows:
            if state is not None:
                programs.next_history.lower(self._history, history, state).compile()
                history = deep.struct(programs.next_history.eval_shape(self._history, history, state))
            begin = (window, self._deep_params, self._deep_inputs, ordered, np.int32(0), history, estimate)
            state = deep.struct(programs.begin.eval_shape(*begin))
            if window in compiled:
                continue
            compiled.add(window)
            programs.begin.lower(*begin).compile()
            for step in dict.fromkeys(turn.step for turn in self._turns[window]):
                advance = (step, self._deep_params, self._deep_inputs, state, np.zeros(4, np.int32))
                programs.advance.lower(*advance).compile()
                if step.group:
                    _, _, tokens = programs.advance.eval_shape(*advance)
                    program = self._shallow_kind(step.group)
                    frames = None if estimated is None else (estimated, np.zeros(step.group, np.int32))
                    programs.finish.lower(
                        program, self.shallow_params, self._shallow_inputs, shallow.struct(tokens), frames
                    ).compile()

    def run(
        self, z: Float[AnyArray, "B T H W C"], prefix: Float[AnyArray, "B P H W C"] | None, then: Then[R]
    ) -> Iterator[R]:
        """Generates the videos; frames are dispatched in order and not awaited.

        Args:
          z: noise [B, T, H, W, C]; that of given frames is read by a learned inverse alone.
          prefix: given frames [B, P, H, W, C], in the flow's units.
          then: dispatches further work on the frames (denoising, for example) before the deep block continues: on a
            single device, work is done in the order of its dispatch.

        Yields:
          The result of `then` for each group of new frames.
        """
        self._stages, self._groups, self.reports = [], [], ()
        noise, estimate, estimated = self.deep.put(z), None, None
        if self._learned is not None:
            estimate, others = programs.estimates(self.config, self._learned, self._deep_inputs, noise)
            estimated = self.shallow.put(others)
        pieces = Ahead(self._deep_pieces(noise, prefix, estimate), self._allowed)
        try:
            for first, frames, tokens in pieces:
                if not frames:
                    pieces.allow()
                    continue
                program = self._shallow_kind(tokens.shape[1])
                indices = first + np.minimum(np.arange(tokens.shape[1]), frames - 1)
                arrays, reports = programs.finish(
                    program,
                    self.shallow_params,
                    self._shallow_inputs,
                    self.shallow.put(tokens),
                    None if estimated is None else (estimated, indices.astype(np.int32)),
                )
                self._groups.append(reports)
                result = then(first, arrays[:frames])
                pieces.allow()
                yield result
        finally:
            pieces.close()
        self.reports = self._joined_reports()

    def _shallow_kind(self, frames: int) -> programs.Shallow:
        return programs.Shallow(self.config, self._solvers[:-1], self.grid.with_frames(frames))

    def _deep_pieces(
        self,
        z: Float[AnyArray, "B T H W C"],
        prefix: Float[AnyArray, "B P H W C"] | None,
        estimate: Float[Array, "B N c"] | None = None,
    ) -> Iterator[tuple[int, int, Float[Array, "B frames rows columns c"]]]:
        """Dispatches stage by stage: first new frame, count, and their tokens [B, group, h, w, c] after the deep block.

        The last `group - count` frames of those tokens are copies.
        """
        ordered, history = programs.ordered(self.config, z), None
        if prefix is not None:
            given = self.shallow.put(prefix.astype(jnp.float32))
            history = self.deep.put(programs.entering(self.config, self.shallow_params, self._shallow_inputs, given))
        state, inputs = None, self._deep_inputs
        for window, first in self._windows:
            if state is not None:
                history, inputs = programs.next_history(self._history, history, state), self._later_inputs
            position = first * self.grid.frame
            start = (ordered, np.int32(position), history, estimate)
            state = programs.begin(window, self._deep_params, inputs, *start)
            for step, stage, done, frames in self._turns[window]:
                indices = np.asarray([stage.first, stage.length, done, done + max(frames, 1) - 1], np.int32)
                state, report, tokens = programs.advance(step, self._deep_params, inputs, state, indices)
                self._stages.append((position + stage.first, report))
                yield first + done, frames, tokens

    def _joined_reports(self) -> tuple[BlockReport, ...]:
        """The reports of `inverse`, joined from the stages of the deep block and the groups of frames of the others."""
        if not self._stages:
            return ()
        starts, stages = zip(*jax.device_get(self._stages), strict=True)
        turns = [turn for window, _ in self._windows for turn in self._turns[window]]
        fields: dict[str, Any] = {
            field.name: np.stack([getattr(stage, field.name) for stage in stages])
            for field in dataclasses.fields(StageReport)
        }
        fields["starts"] = np.asarray(starts, np.int32)
        fields["lengths"] = np.asarray([turn.stage.length for turn in turns], np.int32)
        deep = BlockReport(**fields, block=self.config.num_blocks - 1)
        groups = zip(*jax.device_get(self._groups), strict=True)
        shallow = [jax.tree.map(lambda *parts: np.concatenate(parts), *block) for block in groups]
        return (deep, *shallow)


def check_streaming(flow: Flow, grid: Grid, shape: tuple[int, ...], given: int, window: SlidingWindow | None) -> None:
    """Raises ValueError where the frames of noise of `shape` cannot be inverted one after another."""
    config = flow.config
    if grid.frames is None:
        raise ValueError(f"streaming needs a video z [B, T, H, W, C], got shape {shape}")
    deep = config.num_blocks - 1
    check(not flow.blocks[deep].is_identity, "streaming needs a deep block with layers, got layers_per_block[-1]=0")
    check(
        block_order(config, deep, grid) != "flip",
        f"streaming needs temporal_causal=True: block {deep} reads the frames backwards",
    )
    for index in range(deep):
        check(
            config.is_local(index) or flow.blocks[index].is_identity,
            f"streaming needs shallow_local=True: block {index} spans frames, as the deep one does",
        )
    limit = grid.frames if window is None else min(grid.frames, window.frames)
    check(0 <= given < limit, f"given frames must be 0 to {limit - 1}, got {given}")


def _windows(
    solver: Solver, config: FlowConfig, grid: Grid, given: int, window: SlidingWindow | None
) -> list[tuple[Window, int]]:
    """The windows of `inverse` that cover the new frames of `grid`, each with its first new frame."""
    assert grid.frames is not None
    total, frame = grid.frames, grid.frame
    length = total if window is None else min(total, window.frames)

    def one(context: int, fresh: int, start: int) -> Window:
        return Window(config, solver, grid.with_frames(context + fresh), start * frame, context * frame)

    windows = [(one(given, length - given, given), given)]
    while window is not None and length < total:
        fresh = min(window.frames - window.num_context, total - length)
        # The start only decides whether a token is after the first frame; one value for all windows is one program.
        windows.append((one(window.num_context, fresh, window.frames), length))
        length += fresh
    return windows


def _turns(window: Window, span: Span) -> tuple[_Turn, ...]:
    """The stages of a window, with the frames that each of them completes."""
    frame, plan = window.grid.frame, span.plan
    ends = [(span.num_trivial + stage.first + stage.length) // frame for stage in plan]
    counts = np.diff([0, *ends]).tolist()
    group: dict[Kind, int] = {}
    for stage, count in zip(plan, counts, strict=True):
        group[stage.kind] = max(group.get(stage.kind, 0), count)
    return tuple(
        _Turn(programs.Step(window, stage.kind, group[stage.kind]), stage, end - count, count)
        for stage, end, count in zip(plan, ends, counts, strict=True)
    )
