"""Compares a flow with recorded outputs of the PyTorch original for the same inputs, array by array.

Such a folder holds `config.json` (the original's constructor arguments), `meta.json` (experiments, and which arrays
are inputs), `io.safetensors` (arrays named `experiment/name`), and `weights.safetensors`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.regular_files import read_json
from starflow_jax.core.request_errors import require
from starflow_jax.flows import Flow, FlowOutput, Guidance
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.porting import flow_config, from_torch, open_tensors
from starflow_jax.porting.name_table import read_name_table
from starflow_jax.porting.renaming import renamed
from starflow_jax.tensor_formats.model_states import choose, states_of
from starflow_jax.training import load_run

BAR = 1e-5  # relative error of a float32 forward pass, in the L2 norm


@dataclasses.dataclass(frozen=True)
class Compared:
    """The relative error of this implementation on one recorded array.

    Attributes:
      array: its name; error: the norm of the difference over the norm of the recording, infinite where shapes differ.
      bar: the largest error that passes.
    """

    array: str
    error: float
    bar: float = BAR

    @property
    def passed(self) -> bool:
        return self.error <= self.bar  # False for NaN


@dataclasses.dataclass(frozen=True)
class Recordings:
    """The content of a folder of recordings.

    Attributes:
      config: of the flow; experiments: by name, with "op", "inputs" and "args"; arrays: by name.
    """

    config: FlowConfig
    experiments: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray]


def read_recordings(folder: Path) -> Recordings:
    """The recordings in a folder.

    Raises:
      ValueError: a file that is missing or damaged, or no recorded forward pass.
    """
    config = flow_config(_read_object(folder / "config.json"))
    meta = _read_object(folder / "meta.json")
    arrays = {name: tensor.read() for name, tensor in open_tensors(folder / "io.safetensors").items()}
    experiments = meta.get("experiments")
    if not isinstance(experiments, dict) or not all(isinstance(value, dict) for value in experiments.values()):
        raise ValueError(f"{folder / 'meta.json'} has no table of experiments")
    forward = {name: value for name, value in experiments.items() if value.get("op") in ("forward", "denoiser")}
    if not forward:
        raise ValueError(f"{folder} contains no recorded forward pass")
    for name, experiment in forward.items():
        for array in (experiment.get("inputs") or {}).values():
            if array not in arrays:
                raise ValueError(f"{folder / 'io.safetensors'} has no array {array!r}, which {name} reads")
    return Recordings(config, forward, arrays)


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must contain a JSON object")
    return value


def compare(flow: Flow, recordings: Recordings) -> list[Compared]:
    """Runs every recorded forward pass of the flow, and of its denoiser, and compares the outputs."""
    compared = []
    for name, experiment in recordings.experiments.items():
        outputs = _denoiser(flow, recordings, experiment) if experiment["op"] == "denoiser" else None
        for key, value in (outputs or _forward(flow, recordings, experiment)).items():
            array = f"{name}/{key}"
            if array in recordings.arrays:
                compared.append(Compared(array, relative_error(value, recordings.arrays[array])))
    return compared


@dataclasses.dataclass(frozen=True)
class VerifyRequest:
    """A request to run the forward passes recorded in a folder, and to compare their outputs.

    Attributes:
      verify: folder of the recordings.
      source: a file or folder of tensors of the original; None for the weights of the recordings.
      workdir: instead of `source`, folder of a run with the recorded flow.
      weights: key of the state in a file that contains several; None for the only one.
      step: of the run's checkpoint, None for the newest; ema: whether to use its moving average, where it has one.
      names: a table of the names of the tensors (`porting.name_table`), with which `weights` is what the names of the
        wanted ones begin with; None for the names of the original.

    Raises:
      RequestError, ValueError: both `source` and `workdir` are given, `names` without `source`, or a field is out of
        range.
    """

    verify: Path
    source: Path | None = None
    workdir: Path | None = None
    weights: str | None = None
    step: int | None = None
    ema: bool = True
    names: Path | None = None

    def __post_init__(self) -> None:
        require(
            self.source is None or self.workdir is None,
            "{verify} takes the weights of {source} or of {workdir}, got both",
        )
        require(
            self.names is None or self.source is not None,
            "{names} has the names of tensors of {source}, which is missing",
        )
        if self.step is not None:
            check_integer("step", self.step, minimum=0)


def verify_recordings(request: VerifyRequest) -> list[Compared]:
    """Compares the recorded outputs of an original with those of this implementation for the same weights.

    Raises:
      ValueError: recordings or weights that cannot be read, or a run of another flow than the recorded one.
    """
    table = None if request.names is None else read_name_table(request.names)
    recordings = read_recordings(request.verify)
    definition, expected = abstract(recordings.config)
    if request.workdir is not None:
        config, definition, params, _ = load_run(request.workdir, ema=request.ema, step=request.step)
        if config.flow != recordings.config:
            raise ValueError(f"the flow of {request.workdir} is not the one recorded in {request.verify}")
    else:
        opened = open_tensors(request.source or request.verify / "weights.safetensors")
        if table is None:
            _, tensors = choose(states_of(opened), request.weights, opened.left_aside)
        else:
            tensors = renamed(table, opened, request.weights, opened.left_aside).tensors
        values: Mapping[str, Any] = {name: tensor.read() for name, tensor in tensors.items()}
        params = jax.tree.map(jnp.asarray, from_torch(values, expected))
    try:
        return compare(merge(definition, params), recordings)
    except KeyError as error:
        raise ValueError(f"{request.verify} lacks the recorded array {error}") from error


def relative_error(actual: Any, recorded: np.ndarray) -> float:
    """||computed - recorded|| / ||recorded|| in float64; infinite where the shapes differ."""
    actual = np.asarray(actual, np.float64)
    if actual.shape != recorded.shape:
        return float("inf")
    norm = float(np.linalg.norm(recorded.astype(np.float64)))
    distance = float(np.linalg.norm(actual - recorded))
    return distance / norm if norm > 0 else distance


@jax.jit
def _run(flow: Flow, x: Any, cond: Any, guidance: Any) -> FlowOutput:
    return flow.forward(x, cond, guidance=guidance)


def _forward(flow: Flow, recordings: Recordings, experiment: Mapping[str, Any]) -> dict[str, Any]:
    x, y = _inputs(recordings, experiment)
    weight = (experiment.get("args") or {}).get("guidance")
    guidance = None
    if weight:  # recorded with a doubled batch, of which both halves get the guided parameters
        half = x.shape[0] // 2
        assert y is not None
        x, y, guidance = x[:half], y[:half], Guidance(weight, jnp.asarray(y[half:]))
    out = _run(flow, x, y, guidance)

    def batch(array: Any) -> np.ndarray:
        return np.concatenate([array, array]) if weight else np.asarray(array)

    if flow.config.family == "tarflow":
        tokens = [batch(part).reshape(x.shape[0], -1, part.shape[-1]) for part in out.tokens]
        # Recorded as the mean over tokens and channels.
        outputs = {"z": tokens[-1], "logdets": batch(out.logdet) / tokens[0][0].size}
        return outputs | {f"outputs_{index}": part for index, part in enumerate(tokens[1:])}
    outputs = {"z": np.moveaxis(batch(out.z), -1, -3)}
    if out.text is not None:
        outputs["y_out"] = np.asarray(out.text)
    outputs |= {f"outputs_{index}": batch(part) for index, part in enumerate(out.tokens)}
    return outputs | {f"logdet_{index}": batch(part) for index, part in enumerate(out.logdets)}


def _denoiser(flow: Flow, recordings: Recordings, experiment: Mapping[str, Any]) -> dict[str, Any]:
    x, y = _inputs(recordings, experiment)
    prediction = jax.jit(lambda flow, x, y: flow.denoiser(x, y))(flow, x, y)
    return {"pred": np.moveaxis(np.asarray(prediction), -1, -3)}


def _inputs(recordings: Recordings, experiment: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    names = experiment.get("inputs") or {}
    x = np.moveaxis(recordings.arrays[names["x"]], -3, -1)
    y = recordings.arrays[names["y"]] if "y" in names else None
    return x, y.astype(np.int32) if y is not None and np.issubdtype(y.dtype, np.integer) else y
