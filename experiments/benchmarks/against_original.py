"""Compares the time of every operation with that of the PyTorch original, in one run on one processor.

    python experiments/benchmarks/against_original.py --original DIR --json figures.json
    python experiments/benchmarks/against_original.py              # against a plain PyTorch transformer instead
    python experiments/benchmarks/against_original.py --quick      # a tiny flow, one round

DIR is a folder with the original's source, which is executed; no code of it is part of this project. PyTorch has to
be installed in this Python or in the one that --torch-python names. How the original is called is in
original_adapter.py, with options for what a checkout names differently.

Both sides run in processes of their own, on the same cores and with the same number of threads, and take turns: in
every round each operation runs once on each side, while the other process waits. They have the same weights, drawn here
and exported as the original's named tensors (`porting.to_torch`), and the same inputs. The outputs of both sides (z and
log-determinants, the loss and the gradients of all parameters, the denoiser's prediction, the data of each inverse) are
compared first; a relative error above --bar ends the command with status 1, and nothing is timed.

The table gives the minimum of each time, the median in brackets, the floor of the operation (bare matrix products of
the same shapes, or the reading of weights and cache where that takes longer, see bare_products.py and bare_inverse.py),
and how many of these cores other processes used meanwhile. Without --original the other side is a plain transformer of
the same shapes (plain_transformer.py), which computes less than a flow; without PyTorch its columns are absent.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flow_operations import (
    FLOOR,
    PARALLEL,
    PRODUCT,
    READ,
    RECORDED,
    TINY,
    TINY_SIZES,
    Sizes,
    bound,
    operation_names,
    original_arguments,
)
from original_adapter import Names, find_class
from turns import SideError, SideProcess, Times, cores_for, take_turns

from starflow_jax.core.figures import text_table, write_json


class Refused(Exception):
    """The outputs of both sides differ; the message is one sentence."""


def relative_errors(ours: Path, theirs: Path) -> dict[str, float]:
    """The relative L2 error of every array, or of all arrays of a group `group/name` together.

    Infinite where arrays are missing or of another shape.
    """
    with np.load(ours, allow_pickle=False) as a, np.load(theirs, allow_pickle=False) as b:
        sums: dict[str, np.ndarray] = {}
        for name in sorted({*a.files, *b.files}):
            terms = np.full(2, np.inf)
            if name in a.files and name in b.files and a[name].shape == b[name].shape:
                expected, actual = (np.asarray(one[name], np.float64) for one in (b, a))
                terms = np.array([np.sum((actual - expected) ** 2), np.sum(expected**2)])
            group = name.split("/")[0]
            sums[group] = sums.get(group, 0) + terms
    return {
        group: float("inf") if not np.isfinite(s).all() else float(np.sqrt(s[0] / s[1] if s[1] else s[0]))
        for group, s in sums.items()
    }


def compare(theirs: SideProcess, outputs: Mapping[str, Path], bar: float) -> dict[str, float | str]:
    """The largest relative error of each operation, or why the other side cannot run it, as a sentence.

    Args:
      theirs: the other side.
      outputs: file of our output of each operation, which is deleted.
      bar: the largest error that passes.

    Raises:
      Refused: an error above `bar`, or that is not a number.
    """
    result: dict[str, float | str] = {}
    refused = []
    for name, file in outputs.items():
        other = file.with_suffix(".theirs.npz")
        try:
            theirs.ask("output", operation=name, file=str(other))
        except SideError as error:
            result[name] = str(error)
            continue
        errors = relative_errors(file, other)
        result[name] = max(errors.values())
        refused += [f"{array} of {name} differs by {error:.1e}" for array, error in errors.items() if not error <= bar]
        file.unlink()
        other.unlink()
    if refused:
        raise Refused(f"{'; '.join(refused)}; relative errors may be at most {bar:g}, and nothing was timed")
    return result


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to run.

    Attributes:
      original: folder of the original, None for the plain transformer; names: how it is called; python: has PyTorch.
      rounds: of each operation; threads: of each side; bar: largest relative error; only: parts of names.
    """

    original: Path | None
    names: Names
    python: str
    rounds: int
    threads: int
    bar: float
    only: Sequence[str]
    pause: float = 0.25

    def run(self, arguments: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
        """The figures of one configuration.

        Raises:
          Refused, SideError: outputs differ, or a side cannot be prepared.
        """
        variables = {"OPENBLAS_NUM_THREADS": "1"}  # of the reading, which has threads of its own
        with (
            tempfile.TemporaryDirectory() as temporary,
            SideProcess("ours", "our_side", self.threads, variables=variables) as ours,
            self._other_process() as theirs,
        ):
            folder = Path(temporary)
            common = {"sizes": dataclasses.asdict(sizes), "threads": self.threads, "folder": temporary}
            prepared = ours.ask("prepare", arguments=arguments, **common)
            names = self._chosen(prepared["operations"])
            self._say(f"comparing {len(names)} operations")
            outputs = {name: folder / f"{index}.npz" for index, name in enumerate(names)}
            described = self._describe(ours, outputs)
            versions = dict(prepared["versions"])
            if self.original is not None:
                request = {"original": str(self.original), "names": dataclasses.asdict(self.names)}
                request |= prepared["facts"]["jacobi"]
                versions |= theirs.ask("prepare", arguments=arguments, **request, **common)["versions"]
                errors = compare(theirs, outputs, self.bar)
                if all(isinstance(error, str) for error in errors.values()):
                    raise SideError(f"no operation of the original runs; the first one: {next(iter(errors.values()))}")
            else:
                errors = self._prepare_plain(theirs, prepared["facts"], described, versions)
            times = self._time(ours, theirs, {name: not isinstance(errors[name], str) for name in names})
        lines = [self._line(name, described[name], errors[name], times) for name in names]
        product = times[PRODUCT][PRODUCT].summary()
        return {"product_1024": product, "versions": versions, "operations": lines}

    @property
    def other(self) -> str:
        """The name of the other side."""
        return "plain transformer" if self.original is None else "original"

    def _other_process(self) -> SideProcess:
        side = "plain_transformer" if self.original is None else "original_adapter"
        return SideProcess(self.other, side, self.threads, python=self.python)

    def _chosen(self, operations: Sequence[str]) -> list[str]:
        known = [name for name in operation_names(denoiser=True, text=True) if name in operations]
        if not self.only:
            return known
        chosen = [n for part in self.only for n in ([part] if part in known else [n for n in known if part in n])]
        if not chosen:
            raise SideError(f"this flow has none of the operations {', '.join(self.only)}, only {', '.join(known)}")
        return [name for name in known if name in chosen]

    @staticmethod
    def _describe(ours: SideProcess, outputs: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        described = {}
        for name, file in outputs.items():
            ours.ask("output", operation=name, file=str(file))
            described[name] = ours.ask("describe", operation=name)
        return described

    def _prepare_plain(
        self, theirs: SideProcess, facts: dict[str, Any], described: dict[str, Any], versions: dict[str, str]
    ) -> dict[str, Any]:
        """Prepares the plain transformer; a sentence for every operation if that fails, else None."""
        inverses = {name: described[name]["chunks"] for name in described if name not in PARALLEL}
        request = {"blocks": facts["blocks"], "denoiser": facts.get("denoiser"), "inverses": inverses}
        try:
            versions |= theirs.ask("prepare", **request, threads=self.threads)["versions"]
        except SideError as error:
            missing = "No module named 'torch'" in str(error)
            reason = f"{self.python} has no PyTorch, so nothing is compared with" if missing else str(error)
            self._say(f"{reason} a plain transformer" if missing else reason)
            return dict.fromkeys(described, str(error))
        return dict.fromkeys(described)

    def _time(self, ours: SideProcess, theirs: SideProcess, compared: dict[str, bool]) -> dict[str, dict[str, Times]]:
        programs: dict[str, list[tuple[str, SideProcess, str]]] = {PRODUCT: [(PRODUCT, ours, PRODUCT)]}
        for name, both in compared.items():
            programs[name] = [("ours", ours, name), ("products", ours, FLOOR + name)]
            programs[name] += [] if name in PARALLEL else [("read", ours, READ + name)]
            programs[name] += [("theirs", theirs, name)] if both else []

        def report(done: int) -> None:
            self._say(f"round {done} of {self.rounds}" if done else "first runs, not counted: done")

        cores = cores_for(self.threads)
        return take_turns(programs, rounds=self.rounds, pause=self.pause, cores=cores, report=report)

    @staticmethod
    def _say(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    def _line(
        self, name: str, described: dict[str, Any], error: Any, times: dict[str, dict[str, Times]]
    ) -> dict[str, Any]:
        summaries = {column: one.summary() for column, one in times[name].items()}
        read = summaries["read"]["minimum"] if "read" in summaries else 0.0
        floor = max(summaries["products"]["minimum"], read)
        line = {"operation": name, **summaries, "floor": floor, "bound": "arithmetic"}
        if "read" in summaries:
            product = times[PRODUCT][PRODUCT].summary()["minimum"]
            line["bound"] = bound(read, described["multiply_adds"], product)
        line |= {key: described[key] for key in ("compile", "evaluations", "converged") if key in described}
        line["of_floor"] = summaries["ours"]["minimum"] / floor
        if "theirs" in summaries:
            line |= {"baseline": self.other, "ratio": summaries["theirs"]["minimum"] / summaries["ours"]["minimum"]}
            line["relative_error"] = error
        elif error:
            line["left_out"] = error
        known = [s["others"] for s in summaries.values() if s["others"] is not None]
        line["others"] = sum(known) / len(known) if known else None
        return line


def table(lines: Sequence[dict[str, Any]], other: str) -> str:
    """The figures of one configuration as Markdown, and a sentence for each operation that the other side lacks."""
    both = any("theirs" in line for line in lines)
    checked = any(line.get("relative_error") is not None for line in lines)
    head = ["operation", "evaluations", "ours s", "floor s", "bound", "ours / floor"]
    head += ([f"{other} s", f"{other} / ours"] if both else []) + (["error"] if checked else []) + ["cores of others"]
    rows = [head]
    for line in lines:
        evaluations = str(line.get("evaluations", "")) + ("" if line.get("converged", True) else " (not converged)")
        row = [line["operation"], evaluations, _seconds(line["ours"]), f"{line['floor']:.3f}", line["bound"]]
        row.append(f"{line['of_floor']:.2f}")
        if both:
            row += [_seconds(line["theirs"]), f"{line['ratio']:.2f}"] if "theirs" in line else ["", ""]
        if checked:
            row.append(f"{line['relative_error']:.0e}" if "theirs" in line else "")
        rows.append([*row, "" if line["others"] is None else f"{line['others']:.2f}"])
    left_out = [f"{line['operation']} is left out: {line['left_out']}" for line in lines if "left_out" in line and both]
    return "\n".join([text_table(rows), *left_out])


def _seconds(summary: dict[str, Any]) -> str:
    return f"{summary['minimum']:.3f} ({summary['median']:.3f})"


def processor() -> str:
    """The name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Names:
    """The names of the original; ends the command with status 2 and a sentence where an option is out of range."""
    for name in ("rounds", "threads"):
        if not 1 <= getattr(options, name) <= 10_000:
            parser.error(f"--{name} must be from 1 to 10000, got {getattr(options, name)}")
    if not 0 < options.bar < float("inf"):
        parser.error(f"--bar must be above 0, got {options.bar}")
    known = operation_names(denoiser=True, text=True)
    for part in options.only:
        if not any(part in name for name in known):
            parser.error(f"--only must be a part of {', '.join(known)}, got {part!r}")
    if shutil.which(options.torch_python) is None:
        parser.error(f"--torch-python must be a Python that can be run, got {options.torch_python!r}")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json must be a file, got the folder {options.json}")
    cores = len(cores_for(options.threads))
    if 0 < cores < options.threads:
        parser.error(f"--threads must be at most {cores}, the cores that this process may use, got {options.threads}")
    given: dict[str, str] = {}
    for pair in options.original_name:
        name, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"--original-name must be NAME=VALUE, got {pair!r}")
        given[name] = value
    given |= {k: v for k, v in (("module", options.original_module), ("cls", options.original_class)) if v}
    try:
        names = Names.parse(given)
        if options.original is None:
            if given:
                parser.error("--original-module, --original-class and --original-name need --original")
            return names
        if not options.original.is_dir():
            parser.error(f"--original must be a folder, got {options.original}")
        module, cls = find_class(options.original, names)
    except ValueError as error:
        parser.error(str(error))
    return dataclasses.replace(names, module=module, cls=cls)


def configurations(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], Sizes]]:
    """Name, constructor arguments and sizes of each configuration."""
    if options.quick:
        yield "tiny", TINY, TINY_SIZES
        return
    for folder in map(Path, options.config or (RECORDED / "image", RECORDED / "video")):
        yield folder.name, original_arguments(folder), Sizes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="DIR", type=Path, help="folder with the source of the original")
    parser.add_argument("--original-module", metavar="NAME", help="module of the model (default: searched for)")
    parser.add_argument("--original-class", metavar="NAME", help="class of the model (default: searched for)")
    parser.add_argument(
        "--original-name", metavar="NAME=VALUE", action="append", default=[], help="a field of original_adapter.Names"
    )
    parser.add_argument("--torch-python", metavar="FILE", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--config", metavar="DIR", action="append", help="folder with a config.json (repeatable)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="an operation, or a part of several (repeatable)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each operation on each side")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of each side")
    parser.add_argument("--bar", type=float, default=1e-4, help="largest relative error of an output")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tiny flow, one round: shows that everything runs")
    options = parser.parse_args(arguments)
    names = _checked(parser, options)
    rounds = 1 if options.quick else options.rounds
    comparison = Comparison(
        options.original, names, options.torch_python, rounds, options.threads, options.bar, options.only
    )
    results = {}
    try:
        chosen = list(configurations(options))
        for name, given, sizes in chosen:
            figures = results[name] = comparison.run(given, sizes)
            print(f"{name}, {options.threads} threads; 1024^3 product {figures['product_1024']['minimum']:.4f} s\n")
            print(table(figures["operations"], comparison.other), end="\n\n", flush=True)
    except ValueError as error:
        parser.error(str(error))
    except (SideError, Refused) as error:
        print(f"against_original: {error}", file=sys.stderr)
        return 1
    if options.json:
        machine = {"processor": processor(), "cores": cores_for(options.threads), "threads": options.threads}
        write_json(options.json, {**machine, "rounds": rounds, "baseline": comparison.other, "configs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
