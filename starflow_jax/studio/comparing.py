"""Two checkpoints or solvers on the same noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.studio.drawing import Drawing, draw
from starflow_jax.studio.opened_model import Checkpoints


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two settings: the step of a checkpoint, a solver, and the weight of guidance."""

    step: int
    solver: str
    guidance: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two sets of samples of the same noise are apart.

    Attributes:
      relative: root mean square of the difference of the samples in the units of the flow, by that of the first ones.
      same_pixels: share of the values of pixels that are equal, 0 to 1.
      evaluations: network evaluations in sequence of the first by those of the second.
      seconds: time of the first by that of the second, compilation excluded.
    """

    relative: float
    same_pixels: float
    evaluations: float
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """The samples of both settings as far as they are final; None before they begin. The difference at the end."""

    first: Drawing | None = None
    second: Drawing | None = None
    difference: Difference | None = None


def side_request(request: SampleRequest, side: Side) -> SampleRequest:
    """The request with the settings of one side."""
    return dataclasses.replace(request, solver=side.solver, guidance=side.guidance)


def compare(checkpoints: Checkpoints, request: SampleRequest, first: Side, second: Side) -> Generator[Pair, None, None]:
    """Draws the samples of both sides, one after the other, from the noise of the seed of `request`.

    Raises:
      ValueError: the sides are equal, or the request does not fit the model.
    """
    check(first != second, "choose two settings that differ: another checkpoint, solver or guidance")
    pair = Pair()
    for drawing in draw(checkpoints.at(first.step), side_request(request, first)):
        pair = Pair(first=drawing)
        yield pair
    for drawing in draw(checkpoints.at(second.step), side_request(request, second)):
        pair = dataclasses.replace(pair, second=drawing)
        yield pair
    assert pair.first is not None and pair.second is not None
    yield dataclasses.replace(pair, difference=difference(pair.first, pair.second))


def difference(first: Drawing, second: Drawing) -> Difference:
    """The difference of two finished drawings of as many samples."""
    assert first.x is not None and second.x is not None
    apart = np.sqrt(np.mean((np.float64(first.x) - second.x) ** 2))
    return Difference(
        relative=float(apart / max(np.sqrt(np.mean(np.float64(first.x) ** 2)), 1e-12)),
        same_pixels=float(np.mean(first.pixels == second.pixels)),
        evaluations=(first.depth or 0) / max(second.depth or 0, 1),
        seconds=first.seconds / max(second.seconds, 1e-9),
    )
