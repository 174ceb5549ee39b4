"""`starflow COMMAND`: parses the arguments, runs the command, reports bad input with one sentence and an exit code.

Exit codes: 0 success, 1 a bug, 2 bad input, 3 partial success (sweep, doctor), 75 try again later (a training that
hung, processes that did not come, a store that did not answer), 130 interrupted. Any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from starflow_jax import __version__
from starflow_jax.cli import commands
from starflow_jax.cli.compiled_programs import keep_compiled_programs
from starflow_jax.cli.errors import BUG, INTERRUPTED, TRY_AGAIN, CommandError
from starflow_jax.cli.options.arguments import Parser, check_names, check_values, split_overrides
from starflow_jax.cli.process_group import Others
from starflow_jax.cli.staging import run_staged
from starflow_jax.core.request_errors import RequestError
from starflow_jax.core.storage.places import shown
from starflow_jax.core.storage.retries import StoreError


def _commands() -> dict[str, ModuleType]:
    """The modules of `cli/commands` by the names of their commands, in the order of `starflow --help`."""
    names = [f"{commands.__name__}.{entry.name}" for entry in pkgutil.iter_modules(commands.__path__)]
    modules = sorted(map(importlib.import_module, names), key=lambda module: module.ORDER)
    return {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in modules}


COMMANDS = _commands()

EXAMPLES = """\
examples:
  starflow demo
  starflow train --config experiments/digits.py --workdir runs/digits
  starflow info --workdir runs/digits
  starflow data --config experiments/digits.py --out sheet.png
  starflow evaluate --workdir runs/digits
  starflow sample --workdir runs/digits --num 64 --class 7 --guidance 1.5 --solver jacobi --out x.png

starflow COMMAND --help explains every option. Exit codes: 0 done, 1 a bug, 2 refused, 3 done in part, 75 try again
later, 130 interrupted.
"""


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of all commands, and that of each."""
    parser = Parser(
        prog="starflow",
        description="Transformer autoregressive normalizing flows: train, sample, evaluate.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"starflow {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        command.add_to(subparsers)
        if getattr(command, "COMPILES", False):
            subparsers.choices[name].add_argument(
                "--no-compilation-cache",
                action="store_true",
                help="do not keep compiled programs in ~/.cache/starflow_jax for later commands, nor use those there",
            )
    return parser, subparsers.choices


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; None for the arguments of the process, which is then `starflow`.

    Returns:
      The exit code.
    """
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    others = Others()
    code = _answer(sys.argv[1:] if argv is None else list(argv), others, own_process=argv is None)
    if code and (argv is None or others):
        # Everything is saved and closed. Shutting down a library that was interrupted while compiling can crash and
        # change the exit code, or print long messages about files that could not be written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _answer(argv: list[str], others: Others, *, own_process: bool) -> int:
    """Runs a command, prints an error and sends it to the other processes of the run; returns the exit code."""
    try:
        code = _run(argv, others, own_process)
        if code:
            others.wait()
        return code
    except CommandError as error:
        return _failed(error.code, str(error), others)
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or "nothing was written; the same command starts again"
        return _failed(INTERRUPTED, f"interrupted; {how}", others)
    except StoreError as error:
        return _failed(TRY_AGAIN, str(error), others)
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)
    except Exception as error:
        if not others:
            raise
        others.wait_for_cause()
        traceback.print_exc()
        return _failed(BUG, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", others)
    finally:
        others.done()


def _failed(code: int, message: str, others: Others) -> int:
    message = shown(message)
    print(f"starflow: {message}", file=sys.stderr, flush=True)
    others.end(code, message)
    return code


def _run(argv: list[str], others: Others, own_process: bool) -> int:
    parser, parsers = build_parser()
    if not argv:
        raise CommandError(f"a command is required: {', '.join(COMMANDS)} (see starflow --help)")
    name, given = argv[0], list(argv)
    overrides: list[str] = []
    if not name.startswith("-"):
        check_names([name], list(COMMANDS), "a command")
        if getattr(COMMANDS[name], "OVERRIDABLE", False):
            argv, overrides = split_overrides(argv)
        # Checked before argparse, which would report the option that is missing because of the misspelt name.
        check_names([text for text in argv if text.startswith("--")], parsers[name].options(), f"an option of {name}")
        check_values(argv)
    arguments = parser.parse_args(argv)
    arguments.overrides = overrides
    arguments.argv = given
    arguments.others = others
    arguments.parsers = parser, parsers
    # A caller of `main` in its own process configures JAX itself.
    if own_process and getattr(COMMANDS[name], "COMPILES", False):
        problem = keep_compiled_programs(not arguments.no_compilation_cache)
        if problem and not getattr(arguments, "process", None):
            print(f"starflow: {problem}", file=sys.stderr)
    try:
        return run_staged(arguments, parsers[name].flag)
    except RequestError as error:
        raise CommandError(error.text(parsers[name].flag)) from error
