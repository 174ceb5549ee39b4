"""All fields of an experiment file after its overrides: value, default, where the value is from, and what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.build import apply_overrides, build, read_experiment_file
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.field_descriptions import field_descriptions
from starflow_jax.core.config.sweep_config import SweepConfig
from starflow_jax.reports.configuration import settings

# What an experiment file may describe: the first class that knows all its names is taken.
_MISSING = object()
KINDS: tuple[type, ...] = (ExperimentConfig, AutoencoderExperiment, SweepConfig)


class ResolvedField(NamedTuple):
    """A field of an experiment.

    Attributes:
      name: with dots; value, default: as text.
      origin: "default", "file" (get_config), "override", or "complete" (the file computed it from other fields, perhaps
        in place of a value that it or an override had set).
      description: from the docstring of its class; empty if there is none.
    """

    name: str
    value: str
    default: str
    origin: str
    description: str


def resolved_fields(path_spec: str, overrides: Sequence[str] = ()) -> list[ResolvedField]:
    """The fields of an experiment file in their order, those of its parts included.

    Args:
      path_spec: `path.py` or `path.py:variant`, of a flow, of an autoencoder, or of a sweep.
      overrides: `--config.train.lr=1e-4`; later ones win.

    Raises:
      ValueError: as `core.config.load_experiment`.
    """
    in_file, complete = read_experiment_file(path_spec)
    cls = _kind(in_file)
    values = apply_overrides(in_file, overrides, cls)
    completed = values if complete is None else complete(values)
    config: Any = build(cls, completed)
    overridden = [text.removeprefix("--").removeprefix("config.").partition("=")[0] for text in overrides]
    found = []
    for setting in settings(config):
        if _held(values, setting.name) != _held(completed, setting.name):
            origin = "complete"
        elif any(setting.name == name or setting.name.startswith((f"{name}.", f"{name}[")) for name in overridden):
            origin = "override"
        else:
            origin = "default" if _held(in_file, setting.name) is _MISSING else "file"
        name = setting.name.rpartition(".")[2]
        description = field_descriptions(setting.owner).get(name, "")
        found.append(ResolvedField(setting.name, setting.value, setting.default, origin, description))
    return found


def _kind(values: Mapping[str, Any]) -> type:
    for cls in KINDS:
        if set(values) <= {field.name for field in dataclasses.fields(cls)}:
            return cls
    return KINDS[0]  # whose error names what is unknown


def _held(values: Any, dotted: str) -> Any:
    """What nested mappings, lists and dataclasses hold under a name such as "data.mixture[0].path", else `_MISSING`."""
    for name in dotted.replace("[", ".").replace("]", "").split("."):
        if dataclasses.is_dataclass(values):
            values = getattr(values, name, _MISSING)
        elif isinstance(values, Mapping):
            values = values.get(name, _MISSING)
        elif isinstance(values, list | tuple) and name.isdecimal() and int(name) < len(values):
            values = values[int(name)]
        else:
            return _MISSING
    return values
