"""The progress, metrics and checkpoints of a run, read from its folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
from starflow_jax.core.request_errors import require
from starflow_jax.flows.learned_parameters import abstract_learned
from starflow_jax.flows.parameters import abstract, count, num_bytes, unquantised
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.storage import TENSORS_STEM
from starflow_jax.tensor_formats.tensor_folders import open_folder
from starflow_jax.training.checkpoints.inventory import checkpoint_entries
from starflow_jax.training.checkpoints.workdir import CSV_FILE, is_in_use, read_any_config, read_config
from starflow_jax.training.loop.goodput import read_goodput
from starflow_jax.training.loop.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class InfoRequest:
    """A request to describe a run.

    Attributes:
      workdir: folder of the run.
    """

    workdir: Path


def run_info(request: InfoRequest) -> dict[str, Any]:
    """The figures of a run as plain values; no arrays are read.

    Raises:
      ValueError: the folder holds no run, or one whose configuration is damaged.
    """
    workdir, config = request.workdir, read_any_config(request.workdir)
    require(config is not None, "workdir {0} contains no training run", workdir)
    assert config is not None
    rows = read_metrics(workdir / CSV_FILE)
    entries = checkpoint_entries(workdir, config)
    step = max((entry.step for entry in entries if entry.problem is None and entry.step is not None), default=None)
    reached = max([step or 0, *(int(row["step"]) for row in rows[-1:])])
    if is_in_use(workdir):
        state = "running"
    elif step is None and not rows:
        state = "not begun"
    else:
        state = "finished" if step == config.train.steps else "stopped"
    age = time.time() - (workdir / CSV_FILE).stat().st_mtime if rows else None
    goodput = read_goodput(workdir)
    last: dict[str, float] = {}
    for row in rows:  # metrics that are not in every row keep their last value
        last |= row
    return {
        "name": config.name,
        "workdir": str(workdir),
        "family": _family(config),
        "parameters": _num_parameters(config, workdir),
        **_storage(config),
        "data": _data(config),
        "state": state,
        "step": step,
        "reached": reached,
        "steps": config.train.steps,
        "seconds_since_last_row": age,
        "metrics": last,
        "best": {name: _best(rows, name) for name in ("bits_per_dim", "held_out_bits_per_dim") if _best(rows, name)},
        "goodput": None if goodput is None else goodput.to_dict() | {"rows": goodput.rows()},
        "checkpoints": [entry.to_dict() for entry in entries],
    }


def _family(config: AnyExperiment) -> str:
    if isinstance(config, ExperimentConfig):
        return config.flow.family
    if isinstance(config, LearnedInverseExperiment):
        return f"learned inverse of step {config.flow_step}"
    return "autoencoder" if config.autoencoder is None else "decoder of an autoencoder"


def _storage(config: AnyExperiment) -> dict[str, Any]:
    """How the weights of a quantised flow are stored, and the bytes of all its parameters; empty for other models."""
    if not isinstance(config, ExperimentConfig) or config.flow.quantise is None:
        return {}
    return {"quantise": config.flow.quantise, "bytes": num_bytes(abstract(config.flow)[1])}


def _data(config: AnyExperiment) -> str:
    if isinstance(config, LearnedInverseExperiment):
        return "those of the run of its flow"
    return config.data.source + (f" {config.data.path}" if config.data.path else "")


def _num_parameters(config: AnyExperiment, workdir: Path) -> int | None:
    """The number of parameters of the model; None if the model that it belongs to cannot be read."""
    if isinstance(config, ExperimentConfig):
        return count(abstract(unquantised(config.flow))[1])
    if isinstance(config, LearnedInverseExperiment):
        run = read_config(workdir.absolute().parent)
        return None if run is None else count(abstract_learned(run.flow, config.network)[1])
    if config.network is not None:
        autoencoder = AutoencoderKL(**dataclasses.asdict(config.network), scaling_factor=1.0, dtype=config.dtype)
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(autoencoder.init, jax.random.key(0))))
    try:
        return sum(tensor.size for tensor in open_folder(Path(config.autoencoder or ""), TENSORS_STEM).values())
    except ValueError:
        return None


def _best(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, float] | None:
    """The lowest value of a metric, and its step."""
    measured = [(row[name], row["step"]) for row in rows if name in row]
    return dict(zip(("value", "step"), min(measured), strict=True)) if measured else None
