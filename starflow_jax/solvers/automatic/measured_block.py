"""One block of a flow with its exact input and output, on which solvers are tried."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.order import AnyArray, Grid
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.solvers.automatic.calibration import Method, StartName
from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.inverse import BlockTask
from starflow_jax.solvers.tolerance import with_tolerance

# numpy.ndarray or jax.Array: everything but the networks is computed on the host.
HostArray = Any


class _Probe(NamedTuple):
    """The static arguments of a compiled trial."""

    config: FlowConfig
    block: int
    grid: Grid
    solver: Solver


class Outcome(NamedTuple):
    """The solution of a trial and its sequential network evaluations."""

    x: HostArray
    depth: int


@functools.partial(jax.jit, static_argnums=0)
def _try(
    probe: _Probe,
    params: Params,
    z: Float[Array, "rows n c"],
    start: Float[Array, "rows n c"],
    tolerance: Float[Array, ""],
    cond: Shaped[Array, "B *rest"] | None,
    guidance: AnyGuidance | None,
) -> tuple[Float[Array, "rows n c"], Int[Array, ""]]:
    """Inverts one block with another tolerance than that of `probe.solver`; z, start: [rows, n, c] in its order."""
    flow = ready_for_inference(merge(abstract(probe.config)[0], params))
    solver = with_tolerance(probe.solver, tolerance)
    if getattr(probe.solver, "start", "frame") != "frame":
        # One program serves all initial estimates, as it does all tolerances.
        object.__setattr__(solver, "guess", lambda noise: start[:, start.shape[1] - noise.shape[1] :])
    task = BlockTask(flow, cond, guidance, None, index=probe.block, grid=probe.grid, solver=solver)
    own, _ = flow.block_grid(probe.block, probe.grid)
    span = task.span(own.tokens)
    x, report = span.solve(z)
    return x, jnp.sum(report.evaluations)


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredBlock:
    """One block with its data x and noise z, [rows, n, c] in its order, on the host."""

    config: FlowConfig
    params: Params
    flow: Flow
    index: int
    grid: Grid
    cond: HostArray
    guidance: AnyGuidance | None
    x: HostArray
    z: HostArray
    samples: int

    @property
    def tokens(self) -> int:
        return int(self.x.shape[1])

    @property
    def spans_frames(self) -> bool:
        """Whether there are previous frames to start from."""
        own, _ = self.flow.block_grid(self.index, self.grid)
        return own.frames is not None and own.frames > 1

    @property
    def whole(self) -> Solver:
        """Jacobi iteration of all tokens at once."""
        return self.solver(Method("jacobi", self.tokens))

    def solver(self, method: Method) -> Solver:
        """The solver of a trial. All starts but "frame", and all tolerances, share one program."""
        start: StartName = "frame" if method.start == "frame" else "noise"
        return dataclasses.replace(method, start=start).build(0.0, None, self.tokens)

    def secant(self, start: StartName) -> Method:
        """The secant method of all tokens; lags: the previous token, the one above and that of the previous frame."""
        own, _ = self.flow.block_grid(self.index, self.grid)
        lags = [1] + [own.columns] * (1 < own.columns < own.tokens) + [own.frame] * self.spans_frames
        # A fit needs more tokens than coefficients, and several times as many across frames, where tokens vary more.
        pool = (5 if self.spans_frames else 2) * len(lags) * self.x.shape[-1]
        return Method("secant", self.tokens, start, tuple(dict.fromkeys(lags)), pool)

    def run(
        self,
        solver: Solver,
        start: Float[AnyArray, "rows n c"],
        tolerance: float,
        z: Float[AnyArray, "rows n c"] | None = None,
    ) -> Outcome:
        """Runs a trial with all samples."""
        probe = _Probe(self.config, self.index, self.grid, solver)
        z = self.z if z is None else z
        x, depth = _try(probe, self.params, z, start, np.float32(tolerance), self.cond, self.guidance)
        return Outcome(np.asarray(x), int(depth))

    def first_samples(self, count: int) -> MeasuredBlock:
        """The block with the first `count` samples only."""
        rows = self.x.shape[0] // self.samples * count
        cond = None if self.cond is None else self.cond[:count]
        guidance = self.guidance
        null = getattr(guidance, "null", None)
        if guidance is not None and null is not None and null.shape[0] == self.samples:
            guidance = dataclasses.replace(guidance, null=null[:count])
        return dataclasses.replace(self, cond=cond, guidance=guidance, x=self.x[:rows], z=self.z[:rows], samples=count)

    def error(self, x: Float[AnyArray, "rows n c"]) -> float:
        """Relative error of the worst sample."""
        return relative_error(x, self.x, self.samples)


def relative_error(actual: Float[AnyArray, "..."], expected: Float[AnyArray, "..."], samples: int) -> float:
    """Largest |actual - expected| / |expected| of a sample (root mean square); infinite where not finite."""
    reference = np.asarray(expected, np.float64).reshape(samples, -1)
    difference = np.asarray(actual, np.float64).reshape(samples, -1) - reference
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.sqrt((difference**2).sum(axis=1) / np.maximum((reference**2).sum(axis=1), 1e-30))
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")
