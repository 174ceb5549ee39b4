"""Recordings of the PyTorch originals: folders of weights, configuration, inputs and outputs."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from starflow_jax.flows import Flow
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.porting import flow_config, from_torch


@dataclasses.dataclass(frozen=True)
class Check:
    """One recorded array against ours; error is relative in the L2 norm."""

    array: str
    error: float
    bar: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bar  # False for NaN


@dataclasses.dataclass(frozen=True)
class Folder:
    """One folder of recordings."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.path / "meta.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return load_file(self.path / "io.safetensors")

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def flow(self) -> Flow:
        """The recorded weights as a flow."""
        definition, expected = abstract(flow_config(self.arguments))
        params = from_torch(load_file(self.path / "weights.safetensors"), expected)
        return merge(definition, jax.device_put(params))

    @property
    def is_tarflow(self) -> bool:
        return self.flow.config.family == "tarflow"

    def input(self, experiment: dict[str, Any], name: str) -> np.ndarray | None:
        key = experiment.get("inputs", {}).get(name)
        return None if key is None else self.arrays[key]


def folders(root: Path) -> list[Folder]:
    """Every folder of flow recordings below `root`."""
    return [Folder(p.parent) for p in sorted(root.glob("*/meta.json"))]


def relative_error(ours: Any, recorded: np.ndarray) -> float:
    """||ours - recorded|| / ||recorded|| in float64; infinite where the shapes differ."""
    ours = np.asarray(ours, np.float64)
    if ours.shape != recorded.shape:
        return float("inf")
    norm = np.linalg.norm(recorded.astype(np.float64))
    distance = np.linalg.norm(ours - recorded)
    return float(distance / norm) if norm > 0 else float(distance)


def channels_last(x: np.ndarray) -> np.ndarray:
    """[..., C, H, W] to [..., H, W, C]."""
    return np.moveaxis(x, -3, -1)


def channels_first(x: Any) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(np.asarray(x), -1, -3)


def condition(array: np.ndarray | None) -> np.ndarray | None:
    """Recorded text states or labels, as a flow takes them."""
    if array is not None and np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    return array
