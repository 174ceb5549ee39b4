"""Pages of the reference that are generated from the code: every command, and every configuration field."""

from __future__ import annotations

import argparse
import dataclasses
import re
from typing import Any

from starflow_jax.cli.dispatch import build_parser
from starflow_jax.core import config
from starflow_jax.core.config.autoencoder_config import LossConfig, NetworkConfig, ReconstructionConfig
from starflow_jax.core.config.field_descriptions import NAMES, entries, summary
from starflow_jax.core.config.learned_inverse_config import (
    InversePairsConfig,
    LearnedInverseConfig,
    LearnedInverseExperiment,
)
from starflow_jax.core.config.optimizer_config import (
    AdafactorConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeConfig,
)
from starflow_jax.core.config.post_training_config import PolicyConfig, PostTrainingExperiment, PreferenceConfig
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun

# In the order of an experiment file: the field of the experiment that holds it (if any), and the class.
CONFIGURATION: tuple[tuple[str, type], ...] = (
    ("", config.ExperimentConfig),
    ("flow", config.FlowConfig),
    ("flow.language_model", config.TransformerConfig),
    ("flow.denoiser", config.DenoiserConfig),
    ("flow.pixel_map", config.PixelMapConfig),
    ("data", config.DataConfig),
    ("data.captions", config.CaptionConfig),
    ("data.mixture", config.ComponentConfig),
    ("train", config.TrainConfig),
    ("train.optimizer", OptimizerConfig),
    ("train.optimizer.lion", LionConfig),
    ("train.optimizer.adafactor", AdafactorConfig),
    ("train.optimizer.muon", MuonConfig),
    ("train.optimizer.schedule_free", ScheduleFreeConfig),
    ("sample", config.SampleConfig),
    ("evaluate", config.EvaluateConfig),
    ("mesh", config.MeshConfig),
    ("text", config.TextConfig),
    ("", config.AutoencoderExperiment),
    ("network", NetworkConfig),
    ("train", ReconstructionConfig),
    ("loss", LossConfig),
    ("", LearnedInverseExperiment),
    ("network", LearnedInverseConfig),
    ("pairs", InversePairsConfig),
    ("", PostTrainingExperiment),
    ("policy", PolicyConfig),
    ("preference", PreferenceConfig),
    ("", SweepConfig),
    ("runs", SweepRun),
    ("data", SweepData),
)


def configuration_page() -> str:
    """Every class of the configuration with its fields, as Markdown."""
    parts = [
        "# Configuration\n\nAn experiment file defines `get_config()`, which returns these fields as a nested "
        "`ConfigDict`. On the command line, `--config.train.lr=1e-3` overrides one. Every class checks its fields "
        "when it is built, and refuses unknown names."
    ]
    for where, cls in CONFIGURATION:
        parts.append(_class(where, cls))
    return "\n\n".join(parts) + "\n"


def _class(where: str, cls: type) -> str:
    title = f"## `{cls.__name__}`" + (f" (`config.{where}`)" if where else "")
    rows = ["| field | type | default |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        rows.append(f"| `{field.name}` | `{_cell(field.type)}` | {_default(field)} |")
    return "\n\n".join([title, summary(cls), "\n".join(rows), *_descriptions(cls)])


def _descriptions(cls: type) -> list[str]:
    """The entries of the Attributes section of a class as one Markdown list."""
    lines = entries(cls)
    return ["\n".join(f"- {_names(line)}" for line in lines)] if lines else []


def _names(line: str) -> str:
    """The names of fields before a colon as code: "a, b: text; c: text"."""
    return NAMES.sub(lambda match: f"`{match[1].replace(', ', '`, `')}`:", line)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{_cell(repr(field.default))}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{_cell(repr(field.default_factory()))}`"
    return "required"


def _cell(text: Any) -> str:
    return str(text).replace("|", r"\|")


def commands_page() -> str:
    """Every command with its options, as Markdown."""
    _, parsers = build_parser()
    parts = [
        "# Commands\n\n`starflow COMMAND --help` prints the same. Exit codes: 0 done; 1 a bug, with its traceback; "
        "2 refused (a wrong argument or file, explained in one sentence); 3 done in part (some rows of `starflow "
        "sweep`, or a check of `starflow doctor`, failed); 75 try again later (a training that hung, processes that "
        "did not come, a store that did not answer); 130 interrupted."
    ]
    for name, parser in parsers.items():
        parts.append(f"## `starflow {name}`\n\n{(parser.description or '').strip()}")
        rows = ["| option | meaning |", "|---|---|"]
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
                rows.append(f"| {_option(action)} | {_help(parser, action)} |")
        if len(rows) > 2:
            parts.append("\n".join(rows))
        if parser.epilog:
            parts.append(f"```text\n{parser.epilog.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or action.dest
    value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
    required = " (required)" if action.required and action.option_strings else ""
    return f"`{_cell(names + value)}`{required}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""
    return re.sub(r"([<*_])", r"\\\1", _cell(text))
