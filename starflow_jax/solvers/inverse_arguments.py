"""The arguments of an inverse besides the noise: sliding windows, and checks of given frames, conditions, estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxtyping import Shaped

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.order import AnyArray, Grid, block_order
from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.one_pass import OnePass


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Windows in which a video longer than the trained one is generated (specification, section 4).

    Attributes:
      frames: G, frames per window.
      context: Q < G, last frames of a window that are the context of the next one; None means G - 1.
    """

    frames: int
    context: int | None = None

    def __post_init__(self) -> None:
        check_integer("window.frames", self.frames, minimum=2)
        if self.context is not None:
            check_integer("window.context", self.context, minimum=1)
            check(
                self.context < self.frames,
                f"window.context must be below window.frames={self.frames}, got {self.context}",
            )

    @property
    def num_context(self) -> int:
        """Q, with None resolved."""
        return self.frames - 1 if self.context is None else self.context


def check_estimates(solver: Solver, learned: object) -> None:
    """Raises ValueError where a solver starts from the estimates of a learned inverse, and `learned` is None."""
    check(
        learned is not None or not solver.reads_estimate,
        "a solver with start='learned' needs the learned inverse of the flow, got learned=None",
    )


def check_later(cond: Shaped[AnyArray, "..."] | None, later_cond: Shaped[AnyArray, "..."] | None) -> None:
    """Raises ValueError unless `later_cond` is None or has the shape of `cond`, as one program serves all windows."""
    if later_cond is not None:
        expected = None if cond is None else tuple(cond.shape)
        check(
            expected == tuple(later_cond.shape),
            f"later_cond must have the shape of cond, {expected}, got {tuple(later_cond.shape)}",
        )


def check_frames(
    flow: Flow, grid: Grid, shape: tuple[int, ...], prefix: Shaped[AnyArray, "..."] | None, window: SlidingWindow | None
) -> None:
    """Raises ValueError where given frames or windows do not fit noise of `shape` [B, T, H, W, C].

    Both require that every block that spans frames reads them in their order.
    """
    if prefix is None and window is None:
        return
    config = flow.config
    name = "prefix" if prefix is not None else "window"
    check(grid.frames is not None, f"{name} needs a video z [B, T, H, W, C], got shape {tuple(shape)}")
    for index in range(config.num_blocks):
        crosses = not config.is_local(index) and not flow.blocks[index].is_identity
        if crosses and block_order(config, index, grid) == "flip":
            raise ValueError(f"{name} needs temporal_causal=True: block {index} reads the frames backwards")
    if prefix is not None:
        fits = prefix.ndim == 5 and prefix.shape[0] == shape[0] and prefix.shape[2:] == tuple(shape[2:])
        check(
            fits and 1 <= prefix.shape[1] < shape[1],
            f"prefix must be [{shape[0]}, P, {', '.join(map(str, shape[2:]))}] with 1 <= P < {shape[1]}, "
            f"got shape {tuple(prefix.shape)}",
        )
        if window is not None:
            check(
                prefix.shape[1] < window.frames,
                f"prefix must be shorter than window.frames={window.frames}, got {prefix.shape[1]} frames",
            )


def check_logdet(
    solvers: Sequence[Solver], prefix: Shaped[AnyArray, "..."] | None, window: SlidingWindow | None
) -> None:
    """Raises ValueError where the last evaluation of every token does not give the log-determinant of all of them."""
    check(prefix is None, "prefix must be None with with_logdet=True, which covers all tokens")
    check(window is None, "window must be None with with_logdet=True, which covers all tokens")
    check(
        not any(isinstance(solver, OnePass) for solver in solvers),
        "solver must evaluate the flow with with_logdet=True, got OnePass, whose estimates have no density",
    )
