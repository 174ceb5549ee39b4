"""The rounds of `fit`, and the folder in which they are kept: `rounds.json` and the parameters after the last one.

The parameters are written first, then `rounds.json`, which is replaced as a whole. An interruption therefore leaves the
folder with the rounds before it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, shown
from starflow_jax.core.figures import finite, write_json
from starflow_jax.core.regular_files import read_json
from starflow_jax.sharding.layout import tree_layout
from starflow_jax.tensor_formats.tensor_folders import read_tensors, write_tensors

_RECORD = "rounds.json"


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round of `fit` found.

    Attributes:
      method: "drawn" from the flow, or "annealed".
      effective: share of the effective sample size among the points: of draws; the lowest of all levels of annealing.
      log_z: estimate of log Z in nats; log_z_error: its standard error, None of annealing.
      levels: of annealing; 0 of draws.
      loss: mean loss of the last tenth of the tuning, in nats.
      seconds: time that the round took.
    """

    method: str
    effective: float
    log_z: float
    log_z_error: float | None
    levels: int = 0
    loss: float = float("nan")
    seconds: float = float("nan")


def write_round(folder: Path, settings: Mapping[str, Any], rounds: list[Round], params: dict[str, Any]) -> None:
    """Keeps the parameters after the last of the rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _file_name(len(rounds))
    write_tensors(folder / name, {key: np.asarray(value) for key, value in _named(params).items()})
    write_json(folder / _RECORD, {"settings": dict(settings), "rounds": [dataclasses.asdict(one) for one in rounds]})
    for other in folder.glob("parameters-*.safetensors"):
        if other.name != name:
            other.unlink(missing_ok=True)


def read_rounds(
    folder: Path, settings: Mapping[str, Any], params: dict[str, Any], most: int
) -> tuple[list[Round], dict[str, Any]]:
    """The rounds that a folder holds, at most `most`, and the parameters after them; those given where it holds none.

    Raises:
      ValueError: the folder holds rounds of other settings or of another flow, more rounds, or a damaged file.
    """
    path = folder / _RECORD
    if not path.is_file():
        return [], params
    record = read_json(path)
    try:
        rounds, kept = [Round(**one) for one in record["rounds"]], dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no record of rounds: {error}") from error
    wanted = json.loads(json.dumps(finite(dict(settings))))
    differing = sorted(name for name in {*wanted, *kept} if wanted.get(name) != kept.get(name))
    check(
        not differing,
        f"folder {folder} holds rounds with other arguments: "
        + ", ".join(f"{name}={shown(kept.get(name))} instead of {shown(wanted.get(name))}" for name in differing),
    )
    check(0 < len(rounds) <= most, f"rounds must be at least the {len(rounds)} that {folder} holds, got {most}")
    expected, tensors = _named(params), read_tensors(folder / _file_name(len(rounds)))
    same = set(tensors) == set(expected) and all(tensors[name].shape == expected[name].shape for name in expected)
    check(same, f"folder {folder} holds rounds of another flow: its parameters have other names or shapes")
    leaves, structure = jax.tree.flatten(params)
    read = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in zip(expected, leaves, strict=True)]
    layout = tree_layout(params)
    found = jax.tree.unflatten(structure, read)
    return rounds, found if layout is None else jax.device_put(found, layout.tree(params))


def _file_name(rounds: int) -> str:
    return f"parameters-{rounds}.safetensors"


def _named(params: dict[str, Any]) -> dict[str, jax.Array]:
    """The parameters by their path, in the order of `jax.tree.leaves`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
