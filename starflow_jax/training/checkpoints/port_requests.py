"""Requests of `starflow port` that read or write the folder of a run, and the calls that carry them out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.transformer_config import TransformerConfig
from starflow_jax.core.request_errors import require
from starflow_jax.flows.parameters import abstract, unquantised
from starflow_jax.nn.stored_kernels import storage
from starflow_jax.porting.fit import Fit, fit
from starflow_jax.porting.infer import with_inferred
from starflow_jax.porting.name_table import read_name_table
from starflow_jax.porting.renaming import Renamed, check_rows, renamed
from starflow_jax.porting.tensor_names import entries, holds_scales, scheme_of
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import check_fit
from starflow_jax.tensor_formats.model_states import choose, states_of, unread_of
from starflow_jax.tensor_formats.tensor_opening import open_tensors
from starflow_jax.tensor_formats.tensor_writing import SUFFIXES
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, counted
from starflow_jax.training.checkpoints.finished_run import run_config
from starflow_jax.training.checkpoints.ported import write_run, write_torch_file

_MISFITS = {
    "missing": "missing",
    "unread": "not readable",
    "unexpected": "unexpected",
    "shape": "of another shape",
    "type": "of another type",
}


@dataclasses.dataclass(frozen=True)
class PortRequest:
    """A request to convert tensors of a PyTorch original to the folder of a run.

    Attributes:
      source: a file or folder of tensors.
      config: the experiment whose flow the tensors are; `flow.quantise` says in what form they are written.
      workdir: folder of the run, new or empty.
      weights: key of the state in a file that contains several; None for the only one.
      infer: whether the file decides the fields of the flow that its tensors determine.
      allow_partial: whether to write although tensors are missing, unexpected or of another shape. Parameters without a
        tensor get their initial values; a file of quantised weights, which have none, must not lack any.
      layout: of devices; the checkpoint is chunked by the shards that they will read. None for one device.
      origin: the address of the source with its commit, which the run records; None for a source without one.
      step: of the training that the tensors are of, 0 where it is not known.
      names: a table of the names in a file of another implementation (`porting.name_table`), whose flow may have parts
        that the originals do not have. `weights` is then what the names of the wanted tensors begin with.

    Raises:
      RequestError: both `infer` and `names` are given.
    """

    source: Path
    config: ExperimentConfig
    workdir: Path
    weights: str | None = None
    infer: bool = False
    allow_partial: bool = False
    layout: Layout | None = None
    origin: str | None = None
    step: int = 0
    names: Path | None = None

    def __post_init__(self) -> None:
        require(
            not (self.infer and self.names is not None),
            "{infer} reads the tensors of the originals alone and does not go with {names}",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Porting:
    """The tensors of a request, compared with its flow; no values have been read.

    Attributes:
      request: the request; config: its experiment, with inferred fields where it asks for them.
      state: key of the state, "" for none; tensors: of the state, by name.
      num_left_out: number of tensors in the file that do not belong to the state; left_aside: its other objects.
      fit: the comparison; renamed: number of tensors that a table names.
    """

    request: PortRequest
    config: ExperimentConfig
    state: str
    tensors: Mapping[str, LazyTensor]
    num_left_out: int
    left_aside: tuple[LeftAside, ...]
    fit: Fit
    renamed: int = 0

    @property
    def num_parameters(self) -> int:
        """Number of values in the tensors that fit."""
        usable = self.fit.usable()
        return sum(tensor.size for name, tensor in self.tensors.items() if name in usable)

    def left_out(self) -> str:
        """A phrase on what of the file is not written; empty if everything is."""
        parts = [f"{self.num_left_out} tensors that are no weights of this state"] if self.num_left_out else []
        return ", and ".join([*parts, *([counted(self.left_aside)] if self.left_aside else [])])

    def misfits(self) -> str:
        """The number of mismatches of each kind."""
        kinds = [misfit.kind for misfit in self.fit.misfits]
        return ", ".join(f"{kinds.count(kind)} {text}" for kind, text in _MISFITS.items() if kind in kinds)

    def problem(self) -> str | None:
        """Why nothing can be written, as the end of a sentence; None if the run can be written."""
        if not self.fit.is_good and not self.request.allow_partial:
            return f"{self.request.source} does not fit {self.config.name}: {self.misfits()}"
        if holds_scales(self.tensors) and any(misfit.kind != "unexpected" for misfit in self.fit.misfits):
            return f"quantised weights have no initial values, and {self.request.source} lacks some: {self.misfits()}"
        if not self.fit.usable():
            return f"no tensor of {self.request.source} fits {self.config.name}"
        return None

    def figures(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {
            "from": str(self.request.source),
            "state": self.state,
            "tensors": len(self.tensors),
            "renamed": self.renamed,
            "left_aside": self.num_left_out,
            "objects_left_aside": [dataclasses.asdict(one) for one in self.left_aside],
            "narrowed": list(self.fit.narrowed),
            "ignored": list(self.fit.ignored),
            "contradictions": list(self.fit.contradictions),
            "misfits": [dataclasses.asdict(misfit) for misfit in self.fit.misfits],
            "parameters": self.num_parameters,
        }


def check_portable(flow: FlowConfig) -> None:
    """Raises ValueError for a flow with a map, orders, layers or positions that the originals do not have."""
    check(
        flow.pixel_map is None,
        "flow.pixel_map must be None for files of the PyTorch originals, which have no such maps",
    )
    check(
        not any(flow.orders or ()),
        "flow.orders must be None for files of the PyTorch originals, whose blocks read forwards or backwards",
    )
    additions = {"norm": "adaptive", "mlp": "swiglu", "qk_norm": "layer", "positions": "sinusoidal"}
    parts: list[tuple[str, FlowConfig | TransformerConfig | None]] = [
        ("flow", flow),
        ("flow.language_model", flow.language_model),
    ]
    for prefix, part in parts:
        for name, value in additions.items():
            check(
                getattr(part, name, None) != value,
                f"{prefix}.{name} must not be {value!r} for files of the PyTorch originals, which have no such flows",
            )


@contextlib.contextmanager
def _suggesting_a_table(flow: FlowConfig) -> Iterator[None]:
    """Adds to refusals of a flow that a table of names would do, unless its blocks share layers."""
    try:
        yield
    except ValueError as error:
        if flow.shared_layers:
            raise
        hint = "files of other implementations need a table of names (starflow port --names)"
        raise ValueError(f"{error}; {hint}") from error


def open_porting(request: PortRequest) -> Porting:
    """Opens the tensors of a request, and compares their names and shapes with the flow.

    Raises:
      RequestError: a file of quantised weights for a flow that stores its kernels in another way.
      ValueError: a file that cannot be read, no such state, a mesh that does not fit the flow, or a flow that the
        originals do not have; a table that does not fit the file (`renaming.renamed`).
    """
    config = request.config
    table = None if request.names is None else read_name_table(request.names)
    if table is None:
        with _suggesting_a_table(config.flow):
            check_portable(config.flow)
    tensors = open_tensors(request.source)
    if table is None:
        key, chosen = choose(states_of(tensors), request.weights, tensors.left_aside)
        unread = unread_of(tensors.left_aside, key)
        state = Renamed(chosen, 0, {}, (), unread, len(tensors) - len(chosen))
    else:
        key = request.weights or ""
        state = renamed(table, tensors, request.weights, tensors.left_aside)
    if request.infer:
        config = dataclasses.replace(config, flow=with_inferred(config.flow, state.tensors))
    if request.layout is not None:
        check_fit(request.layout, config.flow, request.layout.mesh.size)
    held, wanted = scheme_of(state.tensors), config.flow.quantise
    require(
        held is None or (wanted is not None and storage(wanted) == held),
        "{source} has {0} weights, which need {quantise} {0}, got {1}",
        held,
        wanted or "none",
    )
    given = config.flow if holds_scales(state.tensors) else unquantised(config.flow)
    with contextlib.nullcontext() if table is not None else _suggesting_a_table(given):
        expected = entries(abstract(given)[1], additions=table is not None)
    if table is not None:
        check_rows(table, state.rows, expected)
    result = fit(state.tensors, expected, given, state.unread, table)
    result = dataclasses.replace(result, ignored=(*result.ignored, *state.ignored))
    return Porting(request, config, key, state.tensors, state.num_left_out, tensors.left_aside, result, state.count)


def port_tensors(request: PortRequest, *, porting: Porting | None = None) -> Porting:
    """Writes the folder of a run that holds the tensors of a request, as its one checkpoint.

    Args:
      request: the request.
      porting: its comparison, where `open_porting` has made it already.

    Raises:
      ValueError: see `open_porting`; tensors that do not fit the flow, or `ported.write_run` fails.
    """
    porting = open_porting(request) if porting is None else porting
    problem = porting.problem()
    check(problem is None, f"nothing was written: {problem}")
    usable = porting.fit.usable()
    write_run(request.workdir, porting.config, porting.tensors, usable, request.layout, request.origin, request.step)
    return porting


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """A request to write the parameters of a run as a PyTorch file.

    Attributes:
      workdir: folder of the run.
      to_torch: the file, .safetensors or a format of `torch.load`.
      step: of the checkpoint; None for the newest.
      ema: whether to use the exponential moving average of the parameters, where the checkpoint has one.
      names: a table of the names in a file of another implementation (`porting.name_table`), whose flow may have parts
        that the originals do not have.

    Raises:
      RequestError, ValueError: another suffix, or a negative step.
    """

    workdir: Path
    to_torch: Path
    step: int | None = None
    ema: bool = True
    names: Path | None = None

    def __post_init__(self) -> None:
        require(
            self.to_torch.suffix in SUFFIXES,
            "{to_torch} must end in {0}, got {1!r}",
            ", ".join(SUFFIXES),
            str(self.to_torch),
        )
        if self.step is not None:
            check_integer("step", self.step, minimum=0)


@dataclasses.dataclass(frozen=True)
class Exported:
    """The step of the checkpoint that was written, the name of its experiment, and how many tensors a table names."""

    name: str
    step: int
    renamed: int = 0


def export_run(request: ExportRequest) -> Exported:
    """Writes the parameters of a run as tensors of the original, or by a table as those of another implementation.

    Raises:
      ValueError: the folder holds no run or no such checkpoint, or the checkpoint is damaged; a table that does not fit
        the flow (`renaming.written_as`).
      OSError: the file cannot be written.
    """
    table = None if request.names is None else read_name_table(request.names)
    config = run_config(request.workdir)
    if table is None:
        with _suggesting_a_table(config.flow):
            check_portable(config.flow)
            entries(abstract(config.flow)[1])
    check(
        config.flow.quantise is None,
        f"flow.quantise must be None for files of the PyTorch originals, which are float32, got "
        f"{config.flow.quantise!r}; starflow publish writes quantised weights",
    )
    step, named = write_torch_file(
        request.to_torch, request.workdir, config, request.step, ema=request.ema, table=table
    )
    return Exported(config.name, step, named)
