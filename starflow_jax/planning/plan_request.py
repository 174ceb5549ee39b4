"""The request of a plan: an experiment, a topology of accelerators and sizes of the data; and the plans it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from starflow_jax.core.choices import ProgramName, Quantisation, choices
from starflow_jax.core.config.checks import check_choice, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig, with_quantise
from starflow_jax.core.config.flow_checks import check_devices
from starflow_jax.core.config.mesh_config import AXES
from starflow_jax.core.request_errors import require
from starflow_jax.costs.chips import Topology, topology
from starflow_jax.costs.flops import Work
from starflow_jax.nn.stored_kernels import require_qwix
from starflow_jax.planning import budget
from starflow_jax.planning.estimate import Plan, as_values, batch_parts, largest_batch, make_plan
from starflow_jax.planning.gpu_compiler import missing_modules

_MAX_GUESS = 2**16


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """A request to plan an experiment on accelerators that are not attached.

    Attributes:
      config: the experiment; its mesh, batch size and accumulation count are used.
      topology: chip and shape of each of the `mesh.slices` slices, such as "v5p:4x4x4" or "h100:8x4".
      program: "train", "inverse" (one guided Jacobi iteration of the deep block), or "all".
      frames: frames of a clip, 0 for images; None for those of the data, each source of a mixture in turn.
      size: rows and columns; None for `flow.image_size`.
      text: number of text tokens; None for `flow.text_length`.
      samples: number of samples that the "inverse" program computes together.
      iterations: of each chunk of tokens, for the time of a sample.
      chunk: tokens of a chunk; None for 64, and 512 after the first frame, as in the paper.
      quantise: how the kernels are stored (`FlowConfig.quantise`), for programs that do not train.

    Raises:
      RequestError, ValueError: an unknown topology, or sizes that the flow does not accept.
    """

    config: ExperimentConfig
    topology: str
    program: ProgramName | Literal["all"] = "train"
    frames: int | None = None
    size: tuple[int, int] | None = None
    text: int | None = None
    samples: int = 1
    iterations: int = 10
    chunk: int | None = None
    quantise: Quantisation | None = None

    def __post_init__(self) -> None:
        topology(self.topology)
        check_choice("quantise", self.quantise, (None, *choices(Quantisation)))
        for name in ("chunk", "quantise"):
            require(
                getattr(self, name) is None or self.program == "inverse",
                f"{{{name}}} requires {{program}} inverse, got {{program}} {{0}}",
                self.program,
            )
        if self.quantise is not None:
            object.__setattr__(self, "config", with_quantise(self.config, self.quantise))
        check_choice("program", self.program, (*choices(ProgramName), "all"))
        self._check_quantised()
        for name, minimum in (("frames", 0), ("text", 0), ("samples", 1), ("iterations", 1), ("chunk", 1)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=minimum)
        flow = self.config.flow
        height, width = self.size or flow.image_shape
        require(
            not (height % flow.patch_size or width % flow.patch_size),
            "{size} must be multiples of flow.patch_size={0}, got {1}x{2}",
            flow.patch_size,
            height,
            width,
        )
        require(
            flow.rope or (height, width) == flow.image_shape,
            "{size} must be {0}x{1} for a flow without rotary positions",
            *flow.image_shape,
        )
        text = self._text
        require(not text or flow.text_dim > 0, "{text} must be 0 for a flow that reads no text, got {0}", text)
        require(text > 0 or not flow.text_dim, "{text} must be at least 1 for a flow that reads text, got 0")
        longest = max(frames for frames, _ in self._parts)
        require(not longest or flow.axes != 2, "{frames} must be 0 for a flow of still images, got {0}", longest)

    def _check_quantised(self) -> None:
        """Raises ValueError where the programs or the devices do not suit how the kernels are stored."""
        scheme = self.config.flow.quantise
        if scheme is None:
            return
        require(
            self.program == "inverse",
            "{program} must be inverse for a flow with flow.quantise {0!r}, which is not trained, got {1}",
            scheme,
            self.program,
        )
        check_devices(scheme, self.accelerators.devices)
        if scheme == "int8-activations" and (self.accelerators.chip.kind == "tpu" or not missing_modules()):
            require_qwix()  # whose products are compiled; formulas need none

    @property
    def accelerators(self) -> Topology:
        """All slices of the topology."""
        return dataclasses.replace(topology(self.topology), slices=self.config.mesh.slices)

    @property
    def _text(self) -> int:
        return self.config.flow.text_length if self.text is None else self.text

    @property
    def _parts(self) -> set[tuple[int, int]]:
        """Frames and batch size of every source."""
        data, batch_size = self.config.data, self.config.train.batch_size
        parts = {(part.frames, part.batch_size or batch_size) for part in data.mixture} or {(data.frames, batch_size)}
        if self.frames is None:
            return parts
        # For a mixture, select the part with this number of frames.
        return {part for part in parts if part[0] == self.frames} or {(self.frames, batch_size)}

    @property
    def works(self) -> tuple[Work, ...]:
        """Data sizes of every source, longest clips first."""
        flow = self.config.flow
        rows, columns = (side // flow.patch_size for side in self.size or flow.image_shape)
        parts = sorted(self._parts, reverse=True)
        return tuple(Work(batch, frames or None, rows, columns, self._text) for frames, batch in parts)

    @property
    def programs(self) -> tuple[tuple[ProgramName, Work], ...]:
        """The programs to plan, with the sizes of their data."""
        programs: list[tuple[ProgramName, Work]] = []
        if self.program != "inverse":
            programs += [("train", work) for work in self.works]
        if self.program != "train":
            programs.append(("inverse", dataclasses.replace(self.works[0], batch=self.samples, chunk=self.chunk)))
        return tuple(programs)


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The result of a search for the largest batch that fits.

    Attributes:
      plan: of the largest batch; None if not even the smallest fits.
      step: batches are multiples of it.
      tried: every batch size that was tried, with whether it fits.
    """

    plan: Plan | None
    step: int
    tried: tuple[tuple[int, bool], ...]

    def figures(self) -> dict[str, Any]:
        """The result as JSON values."""
        plan = self.plan
        values = None if plan is None else as_values(plan)
        return {"batch": None if plan is None else plan.batch, "tried": self.tried, "plan": values}


def plans(request: PlanRequest) -> Iterator[Plan]:
    """Plans every program of a request, one after the other.

    Raises:
      ValueError: see `estimate.make_plan`.
    """
    for program, work in request.programs:
        yield make_plan(request.config, request.accelerators, work, program)


def search_largest_batch(request: PlanRequest, on_plan: Callable[[Plan], None] | None = None) -> LargestBatch:
    """Finds the largest batch of the first program of a request that fits, to within 3 %.

    Args:
      request: the request.
      on_plan: called with the plan of every batch size that is tried.
    """
    config, work, chips = request.config, request.works[0], request.accelerators
    program = request.programs[0][0]
    training = program == "train"
    sizes = dict(zip(AXES, config.mesh.sizes(chips.devices), strict=True))
    step = batch_parts(sizes) * config.train.accumulate if training else 1

    def plan_batch(batch: int) -> Plan:
        train = dataclasses.replace(config.train, batch_size=batch, curriculum=())
        experiment = dataclasses.replace(config, train=train) if training else config
        plan = make_plan(experiment, chips, dataclasses.replace(work, batch=batch), program)
        if on_plan is not None:
            on_plan(plan)
        return plan

    def is_predicted_to_fit(batch: int) -> bool:
        memory = budget.train_memory if training else budget.inverse_memory
        return memory(config, chips, sizes, dataclasses.replace(work, batch=batch)).fits

    guess = step
    while guess < _MAX_GUESS and is_predicted_to_fit(2 * guess):
        guess *= 2
    plan, tried = largest_batch(plan_batch, step, guess)
    return LargestBatch(plan, step, tuple(tried))
