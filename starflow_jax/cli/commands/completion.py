"""`starflow completion`: scripts with which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from starflow_jax.cli.options.arguments import choice

ORDER = 175

SHELLS = ("bash", "zsh", "fish")

DESCRIPTION = """\
Prints a script that completes the commands of starflow, their options, the words that an option allows, and files. It
describes the commands of this version, and starts no Python when a key is pressed."""

EXAMPLES = """\
examples:
  starflow completion bash > ~/.local/share/bash-completion/completions/starflow
  starflow completion zsh > ~/.zfunc/_starflow      # with fpath+=~/.zfunc in front of compinit in ~/.zshrc
  starflow completion fish > ~/.config/fish/completions/starflow.fish
"""

# How the types of options are called that take a path, and what completes them.
_FILES = {"path", "read_path", "experiment_file", "output_file", "output_path", "network_name"}
_FOLDERS = {"model_path", "run_path", "runs_path", "outline_path", "work_path"}


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "completion", help="print a completion script of a shell", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("shell", type=choice(*SHELLS), metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    print(script(arguments.shell, *arguments.parsers))
    return 0


def script(shell: str, parser: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """The completion script of a shell.

    Args:
      shell: one of `SHELLS`.
      parser: of all commands; parsers: of each, which are changed.
    """
    import shtab

    for command in parsers.values():
        for action in command._actions:
            kind = str(getattr(action.type, "__qualname__", "")).partition(".")[0]
            if kind == "choice":
                action.choices = vars(action.type)["allowed"]
            elif kind in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif kind in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell=shell)
    return text
