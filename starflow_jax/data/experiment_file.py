"""Writes an experiment file from a suggested configuration."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config import ExperimentConfig, build
from starflow_jax.core.request_errors import require
from starflow_jax.data.suggestion import FolderSurvey, Suggestion, suggest_config, survey_folder

_COLUMNS = 110


@dataclasses.dataclass(frozen=True)
class InitRequest:
    """A request for an experiment file.

    Attributes:
      folder: of the images.
      out: the experiment file, a new file that ends in ".py".

    Raises:
      RequestError: another suffix, or a file that exists.
    """

    folder: Path
    out: Path

    def __post_init__(self) -> None:
        require(self.out.suffix == ".py", "{out} must end in .py, got {0}", self.out)
        require(not self.out.exists(), "{out} must be a new file, got {0}, which exists", self.out)


def write_experiment_file(request: InitRequest) -> Suggestion:
    """Writes an experiment file for a folder of images, each choice with its reason as a comment.

    Returns:
      The suggested configuration.

    Raises:
      ValueError: see `survey_folder`.
    """
    survey = survey_folder(request.folder)
    suggestion = suggest_config(survey)
    build(ExperimentConfig, suggestion.values)  # checks that the written file can be read
    write_text(request.out, _text(survey, suggestion, request.out))
    return suggestion


def _text(survey: FolderSurvey, suggestion: Suggestion, out: Path) -> str:
    name = suggestion.values["name"]
    held_out = (
        f"    starflow evaluate --workdir runs/{name}\n"
        if survey.has_test
        else "\nImages for `starflow evaluate` are read from a folder `test` inside the data folder, which it lacks.\n"
    )
    docstring = (
        f'"""A flow on the {survey.num_images} images of {survey.path}; written by `starflow init`.\n\n'
        f"    starflow data --config {out} --out sheet.png\n"
        f"    starflow train --config {out} --workdir runs/{name}\n"
        f"    starflow sample --workdir runs/{name} --out samples.png\n{held_out}\n"
        "Any field can be changed here, or on the command line with --config.NAME=VALUE.\n"
        '"""'
    ).replace("\\", "\\\\")
    body = "\n".join(_lines(suggestion.values, suggestion.reasons, "", 3))
    return (
        f"{docstring}\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config() -> ConfigDict:\n"
        f'    """The experiment."""\n    return ConfigDict(\n        {{\n{body}\n        }}\n    )\n'
    )


def _lines(values: Mapping[str, Any], reasons: Mapping[str, str], prefix: str, level: int) -> Iterator[str]:
    """The lines of a nested dictionary, reasons as comments above the values."""
    indent = "    " * level
    for name, value in values.items():
        path = f"{prefix}{name}"
        for line in textwrap.wrap(reasons.get(path, ""), _COLUMNS - len(indent)):
            yield f"{indent}# {line}"
        if isinstance(value, Mapping):
            yield f"{indent}{name!r}: {{".replace("'", '"')
            yield from _lines(value, reasons, f"{path}.", level + 1)
            yield f"{indent}}},"
        elif isinstance(value, tuple):
            yield f'{indent}"{name}": ('
            yield from textwrap.wrap(
                ", ".join(map(repr, value)) + ",",
                _COLUMNS,
                initial_indent=indent + "    ",
                subsequent_indent=indent + "    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            yield f"{indent}),"
        else:
            yield f'{indent}"{name}": {value!r},'
