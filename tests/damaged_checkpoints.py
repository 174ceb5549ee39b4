"""Damages every file of a checkpoint in turn, and writes what commands answer; a process of its own, run by a test.

    python tests/damaged_checkpoints.py FOLDER

What threads of the checkpoint library print after an error appears on stderr of a process without pytest alone. Writes
FOLDER/answers.json, a list of [file, damage, command, exit code or error, stderr].
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.run_loading import load_run
from starflow_jax.training.checkpoints.workdir import claim_workdir

EXPERIMENT = str(Path(__file__).parents[1] / "experiments" / "digits.py") + ":tiny"
CONFIG = load_config(EXPERIMENT)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"\x01"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "deleted": Path.unlink,
}
# The command that reads the parameters, and the one that reads the state of a training.
COMMANDS = {
    "load": ["sample", "--workdir", "run", "--num", "1", "--out", "new.png"],
    "restore": ["train", "--workdir", "run", "--config", EXPERIMENT],
}


def write_run() -> None:
    """A run with one checkpoint of small random numbers."""
    claim_workdir(Path("whole"), CONFIG)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.integers(0, 9, leaf.shape), leaf.dtype), abstract_state(CONFIG))
    with Checkpoints(Path("whole"), CONFIG, write=True) as checkpoints:
        checkpoints.save(state.replace(step=jnp.asarray(6, jnp.int32)), {"next_index": 60})


def read(name: str) -> int:
    """Reads the checkpoint as `COMMANDS[name]` does; 0, or 2 with a sentence."""
    try:
        if name == "load":
            load_run(Path("run"))
        else:
            with Checkpoints(Path("run"), CONFIG) as checkpoints:
                checkpoints.restore(abstract_state(CONFIG))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def answer(call: Callable[[], int]) -> tuple[int | str, str]:
    """Exit code or error of a call, and what it and its threads print to stderr."""
    with tempfile.TemporaryFile() as printed:
        kept = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            code: int | str = call()
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
        finally:
            for _ in range(2):  # errors that no one asks for are printed when they are collected
                gc.collect()
                time.sleep(0.02)
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        return code, printed.read().decode(errors="replace").strip()


def answers() -> list[tuple[str, str, str, int | str, str]]:
    found = []
    asked = set()  # parts of the checkpoint whose damage a command was told of
    for file in sorted(path for path in Path("whole/checkpoints").rglob("*") if path.is_file()):
        for damage, change in DAMAGES.items():
            for name, arguments in COMMANDS.items():
                shutil.rmtree("run", ignore_errors=True)
                shutil.copytree("whole", "run")
                change(Path("run", *file.parts[1:]))
                code, printed = answer(lambda name=name: read(name))
                found.append((str(file), damage, name, code, printed))
                if code == 2 and (part := (file.parts[3], name, file.stem == "metadata")) not in asked:
                    asked.add(part)
                    code, printed = answer(lambda arguments=arguments: main(arguments))
                    found.append((str(file), damage, arguments[0], code, printed))
    return found


if __name__ == "__main__":
    with contextlib.chdir(sys.argv[1]):
        write_run()
        Path("answers.json").write_text(json.dumps(answers()))
