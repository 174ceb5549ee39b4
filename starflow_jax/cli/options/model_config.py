"""`--model-config FILE.yaml`: a released configuration file on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.paths import path


def add_model_config(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares the options.

    Args:
      parser: of the command.
      what: the end of the help text, the use of the file's values.
    """

    parser.add_argument("--model-config", type=path, metavar="FILE.yaml", help=f"a released configuration file, {what}")
    parser.add_argument(
        "--ignore-unknown",
        action="store_true",
        help="with --model-config: ignore unknown arguments instead of refusing the file",
    )


def with_model_config(arguments: argparse.Namespace, config: Any) -> Any:
    """The experiment with the values of --model-config; prints which of its arguments have no counterpart.

    Raises:
      CommandError: the file cannot be read, has unknown arguments, or its values are inconsistent.
    """
    if arguments.model_config is None:
        return config
    from starflow_jax.porting.released_yaml import apply_released, read_released

    with sentences():
        released = read_released(arguments.model_config)
        if released.unknown and not arguments.ignore_unknown:
            raise CommandError(
                f"{released.path} has unknown arguments: {', '.join(released.unknown)}; "
                "--ignore-unknown leaves them out"
            )
        for name, instead in released.without_meaning.items():
            print(f"{name} of {released.path} is not supported: {instead}", file=sys.stderr)
        return apply_released(config, released)


def sampled_as_released(arguments: argparse.Namespace, config: Any) -> Any:
    """The experiment of a run with the sampling options of --model-config, whose flow must be that of the run.

    Raises:
      CommandError: see `with_model_config`; or the file describes another flow.
    """
    released = with_model_config(arguments, config)
    for name in config.flow.__dataclass_fields__:
        value, released_value = getattr(config.flow, name), getattr(released.flow, name)
        if value != released_value:
            raise CommandError(
                f"--model-config {arguments.model_config} is of another flow: {name} is {released_value!r} in the "
                f"file and {value!r} in the run"
            )
    return dataclasses.replace(config, sample=released.sample)
