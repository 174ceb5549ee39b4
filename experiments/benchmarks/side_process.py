"""The process of one side of a comparison: it prepares and runs operations on request, one JSON object a line.

    python side_process.py SIDE CORES      # a file beside this one with a function `prepare`; 0,1: cores to run on

Requests come on standard input, answers leave on standard output. Whatever else a side prints goes to standard error.
`prepare(request)` returns a `Side`. It needs the standard library and NumPy; what else a side needs is its own matter,
since each runs in the Python that has it.

    {"do": "prepare", ...}                         {"operations": [...], "facts": {...}, "versions": {...}}
    {"do": "describe", "operation": NAME}          {...}, what the side knows after a first run
    {"do": "output", "operation": NAME, "file": F}  {"seconds": S} of the first run; arrays are in F (.npz)
    {"do": "compile", "operation": NAME}           {}, once it is compiled, where a side compiles
    {"do": "time", "operation": NAME}              {"seconds": wall time, "cpu": seconds of all its threads,
                                                    "peak": bytes that the run added to the process's memory, or null}

Every answer to a request that fails is {"error": one sentence}.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Side:
    """What a side can do.

    Attributes:
      operations: functions by name; each runs once and returns when the result is complete.
      arrays: the result of a function as arrays by name, comparable with those of other sides.
      describe: facts about an operation that has run, for other sides and for the report.
      compile: compiles an operation, which would otherwise be compiled by its first run.
      facts: about all operations; versions: of the software.
    """

    operations: Mapping[str, Callable[[], Any]]
    arrays: Callable[[str, Any], Arrays]
    describe: Callable[[str], dict[str, Any]] = lambda name: {}
    compile: Callable[[str], None] = lambda name: None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def answer(side: Side, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request other than "prepare".

    Raises:
      ValueError: an unknown request or operation.
    """
    name = request.get("operation")
    if name not in side.operations:
        raise ValueError(f"operation must be one of {', '.join(side.operations)}, got {name!r}")
    if request["do"] == "describe":
        return side.describe(name)
    if request["do"] == "compile":
        side.compile(name)
        return {}
    if request["do"] not in ("output", "time"):
        raise ValueError(f"do must be prepare, describe, compile, output or time, got {request['do']!r}")
    before = _memory("VmRSS", reset_peak=True)
    start, start_cpu = time.perf_counter(), time.process_time()
    result = side.operations[name]()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = _memory("VmHWM")
    if request["do"] == "output":
        np.savez(request["file"], **side.arrays(name, result))
    added = None if before is None or peak is None else max(0, peak - before)
    return {"seconds": seconds, "cpu": cpu, "peak": added}


def _memory(field: str, *, reset_peak: bool = False) -> int | None:
    """Bytes of this process's memory by a field of /proc/self/status; None where the system is not Linux.

    reset_peak: the peak, VmHWM, starts anew from the present size.
    """
    try:
        if reset_peak:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def serve(prepare: Callable[[Mapping[str, Any]], Side], requests: TextIO, answers: TextIO) -> None:
    """Answers every request until the input ends."""
    side: Side | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                side = prepare(request)
                reply: dict[str, Any] = {
                    "operations": list(side.operations),
                    "facts": side.facts,
                    "versions": side.versions,
                }
            elif side is None:
                raise ValueError("the side is not prepared")
            else:
                reply = answer(side, request)
        except Exception as error:  # whatever the code of a side raises is an answer, not the end of the process
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(reply), file=answers, flush=True)


def main(name: str, cores: str) -> None:
    """Serves the side of a name over this process's own input and output, on some cores where the system can do that.

    Libraries that are imported afterwards see no other cores.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Imported by the first request, so that a library that is missing is an answer, too.
    serve(lambda request: importlib.import_module(name).prepare(request), sys.stdin, answers)


if __name__ == "__main__":
    # Under this name, too, so that a side's `from side_process import Side` gives the class of this file.
    sys.modules["side_process"] = sys.modules["__main__"]
    main(*sys.argv[1:])
