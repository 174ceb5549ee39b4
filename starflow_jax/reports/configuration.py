"""The configuration of a run beside its defaults, and the commands that train the same again."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.core.storage.places import shown
from starflow_jax.training.checkpoints.post_training_record import read_post_training
from starflow_jax.training.checkpoints.workdir import CONFIG_FILE, read_config

MOST_FIELDS = 2000
_MOST_CHARACTERS = 400
_POST_TRAINING_OPTIONS = ("reward", "pairs", "method", "judges", "base_step")  # they have options of the command
_NO_DEFAULT = "(none: must be set)"


class Setting(NamedTuple):
    """A field of a configuration.

    Attributes:
      name: with dots ("flow.pixel_map.levels"); value, default: as text.
      changed: whether it differs from the default. A field without one does.
      owner: the dataclass that declares the field.
    """

    name: str
    value: str
    default: str
    changed: bool
    owner: type


def settings(config: AnyExperiment) -> list[Setting]:
    """The fields of a configuration in their order, those of its parts included, at most `MOST_FIELDS`."""
    found = []
    for setting in _settings(config, "", dataclasses.MISSING):
        found.append(setting)
        if len(found) == MOST_FIELDS:
            break
    return found


def _settings(part: Any, prefix: str, default_part: Any) -> Iterator[Setting]:
    for field in dataclasses.fields(part):
        name, value = prefix + field.name, getattr(part, field.name)
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if type(default_part) is type(part):
            default = getattr(default_part, field.name)
        if dataclasses.is_dataclass(value):
            if default is None:  # an optional part
                yield Setting(name, type(value).__name__, _text(default), True, type(part))
            yield from _settings(value, f"{name}.", default)
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            yield Setting(name, f"{len(value)} entries", _text(default), value != default, type(part))
            for index, item in enumerate(value):
                yield from _settings(item, f"{name}[{index}].", dataclasses.MISSING)
        else:
            yield Setting(name, _text(value), _text(default), value != default, type(part))


def _text(value: Any) -> str:
    if value is dataclasses.MISSING:
        return _NO_DEFAULT
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}... ({len(text)} characters)"


def commands(config: AnyExperiment, workdir: Path) -> str:
    """Lines of a shell that train the same again in a new folder, from the configuration in `workdir`.

    Empty for a learned inverse whose run of a flow is not where it was. A post-trained run does not record where the
    folder of its base run is.
    """
    if isinstance(config, LearnedInverseExperiment):
        return _inverse_command(config, workdir.absolute().parent)
    post_training = read_post_training(workdir)
    if post_training is not None:
        return _post_training_command(post_training)
    command = "train"
    if isinstance(config, AutoencoderExperiment):
        command = "train-autoencoder" if config.autoencoder is None else "finetune-decoder"
    path = str(workdir.absolute() / CONFIG_FILE)
    address = shown(path)
    opening, imports = (
        ("open", "import json\n") if address == path else ("fsspec.open", "import json\n\nimport fsspec\n")
    )
    return (
        f"cat > again.py <<'END'\n{imports}\n\n"
        "def get_config():\n"
        f"    with {opening}({address!a}) as file:\n"
        "        return json.load(file)\n"
        "END\n"
        f"starflow {command} --config again.py --workdir again"
    )


def _inverse_command(config: LearnedInverseExperiment, run: Path) -> str:
    from starflow_jax.training.inverse.inverse_setup import default_experiment

    try:
        flow = read_config(run)
    except ValueError:
        return ""
    if flow is None:
        return ""
    defaults = dict(_leaves(json.loads(to_json(default_experiment(flow, config.flow_step)))))
    words = ["starflow", "train-inverse", "--workdir", shown(run), "--step", str(config.flow_step)]
    words += [
        f"--config.{name}={value}"
        for name, value in _leaves(json.loads(to_json(config)))
        if name not in defaults or defaults[name] != value
    ]
    return " ".join(map(shlex.quote, words))


def _post_training_command(experiment: PostTrainingExperiment) -> str:
    """The command that trains the same again from the base run, whose folder it leaves open."""
    values = dict(_leaves(json.loads(to_json(experiment))))
    words = [f"--config.{name}={value}" for name, value in values.items() if name not in _POST_TRAINING_OPTIONS]
    stated = {"reward": experiment.reward, "pairs": experiment.pairs, "method": experiment.method}
    options = [f"--{name}={value}" for name, value in stated.items() if value is not None]
    options += [f"--judge={judge}" for judge in experiment.judges]
    options += [f"--step={experiment.base_step}"]
    quoted = " ".join(map(shlex.quote, [*options, *words]))
    return f"starflow post-train --workdir BASE --out again {quoted}"


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        yield name, values
        return
    for key, value in values.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)
