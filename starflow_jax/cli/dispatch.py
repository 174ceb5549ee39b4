"""`starflow COMMAND`: parses, dispatches, answers refusals with one sentence and an exit code.

Exit codes: 0 done, 2 refused (bad input), 3 done in part (sweep), 130 interrupted. Any other error is a bug and keeps
its traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from starflow_jax import __version__
from starflow_jax.cli.commands import (
    calibrate,
    data,
    demo,
    encode,
    evaluate,
    finetune_decoder,
    info,
    plan,
    port,
    sample,
    score,
    study,
    sweep,
    train,
    train_autoencoder,
    vbench,
    version,
    video_quality,
)
from starflow_jax.cli.errors import BUG, INTERRUPTED, REFUSED, CommandError
from starflow_jax.cli.options.arguments import Parser, check_names, split_overrides
from starflow_jax.cli.process_group import Others

COMMANDS = {
    "train": train,
    "info": info,
    "sample": sample,
    "evaluate": evaluate,
    "score": score,
    "sweep": sweep,
    "study": study,
    "video-quality": video_quality,
    "vbench": vbench,
    "calibrate": calibrate,
    "data": data,
    "encode": encode,
    "train-autoencoder": train_autoencoder,
    "finetune-decoder": finetune_decoder,
    "plan": plan,
    "port": port,
    "demo": demo,
    "version": version,
}

# Commands that take --config.NAME=VALUE.
OVERRIDABLE = ("train", "sweep", "data", "encode", "train-autoencoder", "finetune-decoder", "plan", "port")

EXAMPLES = """\
examples:
  starflow demo
  starflow train --config experiments/digits.py --workdir runs/digits
  starflow info --workdir runs/digits
  starflow data --config experiments/digits.py --out sheet.png
  starflow evaluate --workdir runs/digits
  starflow sample --workdir runs/digits --num 64 --class 7 --guidance 1.5 --solver jacobi --out x.png

starflow COMMAND --help explains every option.
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
    for command in COMMANDS.values():
        command.add_to(subparsers)
    return parser, subparsers.choices


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: arguments without the program's name; None for those of the process, which is then `starflow` itself.

    Returns:
      The exit code.
    """
    others = Others()
    code = _answer(sys.argv[1:] if argv is None else list(argv), others)
    if code and (argv is None or others):
        # Everything is saved and closed. Tearing down a library that was stopped while it compiled can crash, which
        # would turn this exit code into another; one whose files could not be written complains at length.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _answer(argv: list[str], others: Others) -> int:
    """The exit code of a command, its refusal said; here, and to the other processes of the run."""
    try:
        code = _run(argv, others)
        if code:
            others.wait()
        return code
    except CommandError as error:
        return _failed(REFUSED, str(error), others)
    except KeyboardInterrupt as interrupt:
        how = str(interrupt) or "nothing was written, and the same command starts again"
        return _failed(INTERRUPTED, f"interrupted; {how}", others)
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)
    except Exception as error:
        if not others:
            raise
        others.hear()
        traceback.print_exc()
        return _failed(BUG, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", others)
    finally:
        others.done()


def _failed(code: int, sentence: str, others: Others) -> int:
    print(f"starflow: {sentence}", file=sys.stderr, flush=True)
    others.tell(code, sentence)
    return code


def _run(argv: list[str], others: Others) -> int:
    parser, parsers = build_parser()
    if not argv:
        raise CommandError(f"name a command: {', '.join(COMMANDS)} (see starflow --help)")
    name = argv[0]
    overrides: list[str] = []
    if not name.startswith("-"):
        check_names([name], list(COMMANDS), "a command")
        if name in OVERRIDABLE:
            argv, overrides = split_overrides(argv)
        # Before argparse, which would first complain of what is missing because a name is misspelt.
        check_names([text for text in argv if text.startswith("--")], parsers[name].options(), f"an option of {name}")
    arguments = parser.parse_args(argv)
    arguments.overrides = overrides
    arguments.others = others
    return arguments.run(arguments)
