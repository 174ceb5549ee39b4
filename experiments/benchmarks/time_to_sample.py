"""Time to a sample at one error: what `auto` chooses against the fastest setting of the other side.

    python experiments/benchmarks/time_to_sample.py --original DIR --torch-python FILE --json samples.json
    python experiments/benchmarks/time_to_sample.py      # against a plain PyTorch transformer
    python experiments/benchmarks/time_to_sample.py --quick

For each configuration of tests/goldens/bench (image, video; --config), with and without guidance and for each batch
size (--batch), both sides invert the same noise with the sequential solver and with Jacobi iteration as in the
original, in chunks of 16, 32 and 64 tokens (growing fourfold after the first frame of a video) at tolerances from 1e-3
to 1e-7. Of each chunk length, the loosest tolerance counts whose relative error with respect to the sequential answer
(root mean square, worst sample) is at most --target. Ours adds `auto`: the solver that a calibration on other noise
chooses for least time. The two sides take turns (turns.py), and the minimum of each time counts.

The last columns are the ratios that matter: the other side's fastest setting / our `auto`, and our sequential solver
/ our `auto`, which should never be below 1. Without --original the other side is a plain transformer
(plain_transformer.py), which decodes with our numbers of evaluations at each setting; without PyTorch there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from against_original import processor
from flow_operations import (
    AUTO,
    GUIDED,
    RECORDED,
    SEQUENTIAL,
    TINY,
    TINY_SIZES,
    JacobiSetting,
    Sizes,
    original_arguments,
)
from original_adapter import Names, find_class
from turns import SideError, SideProcess, cores_for, take_turns

from starflow_jax.core.figures import text_table, write_json

BLOCKS, TOLERANCES = (16, 32, 64), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def sample_error(actual: Path, exact: Path) -> float:
    """The relative error of the worst sample of the array `x`, [B, ...] in both files; infinite where not finite."""
    with np.load(actual, allow_pickle=False) as a, np.load(exact, allow_pickle=False) as b:
        x, y = (np.asarray(one["x"], np.float64).reshape(len(one["x"]), -1) for one in (a, b))
    errors = np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What to run.

    Attributes:
      original: folder of the original, None for the plain transformer; python: has PyTorch; threads: of each side.
      rounds: of each setting; target: largest relative error of a sample.
    """

    original: Path | None
    python: str
    threads: int
    rounds: int
    target: float
    blocks: Sequence[int] = BLOCKS
    pause: float = 0.25

    @property
    def other(self) -> str:
        """The name of the other side."""
        return "plain transformer" if self.original is None else "original"

    def run(self, arguments: dict[str, Any], sizes: Sizes, *, guided: bool) -> dict[str, Any]:
        """The figures of one configuration and batch size.

        Raises:
          SideError: our side fails, or the original.
        """
        kind = GUIDED if guided else ""
        settings = [[JacobiSetting(block, tolerance).name + kind for tolerance in TOLERANCES] for block in self.blocks]
        names = [name for own in settings for name in own]
        with (
            tempfile.TemporaryDirectory() as temporary,
            SideProcess("ours", "our_side", self.threads) as ours,
            self._other_process() as theirs,
        ):
            folder = Path(temporary)
            request = {"arguments": arguments, "sizes": dataclasses.asdict(sizes), "threads": self.threads}
            request |= {"folder": temporary, "target": self.target, "inverses": [*names, AUTO + kind]}
            prepared = ours.ask("prepare", **request)
            exact = folder / "exact.npz"
            ours.ask("output", operation=SEQUENTIAL + kind, file=str(exact))
            chosen = self._loosest(ours, settings, exact) | {SEQUENTIAL + kind: 0.0}
            errors = {name: error for name, error in chosen.items() if error <= self.target}
            errors[AUTO + kind] = self._error(ours, AUTO + kind, exact)
            described = {name: ours.ask("describe", operation=name) for name in errors}
            their_errors, reason = self._prepare_other(theirs, request, prepared["facts"], described, settings, exact)
            programs = {name: [("ours", ours, name)] for name in errors}
            for name in their_errors:
                programs.setdefault(name, []).append(("theirs", theirs, name))
            cores = cores_for(self.threads)
            times = take_turns(programs, rounds=self.rounds, pause=self.pause, cores=cores)
        lines = []
        for name, columns in times.items():
            line: dict[str, Any] = {"setting": name.removesuffix(GUIDED)}
            for side, found in (("ours", errors), ("theirs", their_errors)):
                if side in columns:
                    line[side] = columns[side].summary() | {"error": found[name]}
            lines.append(
                line | {key: v for key, v in described.get(name, {}).items() if key in ("evaluations", "solver")}
            )
        return {
            "guided": guided,
            "batch": sizes.batch,
            "settings": lines,
            "left_out": reason,
            **self._summary(lines, self.target),
        }

    def _loosest(self, side: SideProcess, settings: Sequence[Sequence[str]], exact: Path) -> dict[str, float]:
        """The error of the loosest tolerance of each chunk length that is within the target, or of the tightest."""
        chosen = {}
        for names in settings:
            for name in names:
                error = self._error(side, name, exact)
                if error <= self.target:
                    break
            chosen[name] = error
        return chosen

    def _error(self, side: SideProcess, name: str, exact: Path) -> float:
        output = exact.with_name("output.npz")
        side.ask("output", operation=name, file=str(output))
        return sample_error(output, exact)

    def _prepare_other(
        self,
        theirs: SideProcess,
        request: dict[str, Any],
        facts: dict[str, Any],
        described: dict[str, dict[str, Any]],
        settings: Sequence[Sequence[str]],
        exact: Path,
    ) -> tuple[dict[str, float], str]:
        """The settings of the other side with their errors, or none and the reason."""
        ours = {name: one for name, one in described.items() if not name.startswith(AUTO)}
        sequential = next(name for name in ours if name.startswith(SEQUENTIAL))
        if self.original is None:
            inverses = {name: one["chunks"] for name, one in ours.items()}
            blocks = {"blocks": facts["blocks"], "denoiser": None}
            try:
                theirs.ask("prepare", **blocks, inverses=inverses, threads=self.threads)
            except SideError as error:
                return {}, str(error)
            return dict.fromkeys(ours, 0.0), ""
        own = {"original": str(self.original), "names": dataclasses.asdict(Names()), **facts["jacobi"]}
        inverses = [name for name in request["inverses"] if not name.startswith(AUTO)]
        theirs.ask("prepare", **request | own | {"inverses": inverses})
        found = self._loosest(theirs, settings, exact) | {sequential: self._error(theirs, sequential, exact)}
        return {name: error for name, error in found.items() if error <= self.target}, ""

    def _other_process(self) -> SideProcess:
        side = "plain_transformer" if self.original is None else "original_adapter"
        return SideProcess(self.other, side, self.threads, python=self.python)

    @staticmethod
    def _summary(lines: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
        """The fastest settings of both sides, and the ratios to `auto` if its error is within the target."""
        ours = {line["setting"]: line["ours"]["minimum"] for line in lines if "ours" in line}
        theirs = {line["setting"]: line["theirs"]["minimum"] for line in lines if "theirs" in line}
        error = next(line["ours"]["error"] for line in lines if line["setting"] == AUTO)
        within = error <= target
        summary: dict[str, Any] = {"auto": ours[AUTO], "auto_within_target": within}
        summary["sequential_over_auto"] = ours[SEQUENTIAL] / ours[AUTO] if within else None
        summary["ours_fastest"] = min((n for n in ours if n != AUTO or within), key=lambda name: ours[name])
        if theirs:
            fastest = min(theirs, key=lambda name: theirs[name])
            summary |= {"theirs_fastest": fastest, "theirs": theirs[fastest]}
            summary |= {"ratio": theirs[fastest] / ours[AUTO]} if within else {}
        return summary


def table(results: Sequence[dict[str, Any]], other: str) -> str:
    """A row for each configuration, guidance and batch size."""
    both = any("theirs" in result for result in results)
    head = ["configuration", "batch", "ours, sequential s", "ours, auto s", "error", "evaluations"]
    head += ["sequential / auto"] + ([f"{other}, fastest s", "its setting", f"{other} / auto"] if both else [])
    rows = [head]
    for result in results:
        lines = {line["setting"]: line for line in result["settings"]}
        name = result["name"] + (", guided" if result["guided"] else "")
        row = [name, str(result["batch"]), f"{lines[SEQUENTIAL]['ours']['minimum']:.3f}", f"{result['auto']:.3f}"]
        missed = "" if result["auto_within_target"] else " (misses)"
        row += [f"{lines[AUTO]['ours']['error']:.1e}{missed}", str(lines[AUTO]["evaluations"])]
        row.append("" if missed else f"{result['sequential_over_auto']:.2f}")
        if "theirs" in result:
            row += [f"{result['theirs']:.3f}", result["theirs_fastest"], "" if missed else f"{result['ratio']:.2f}"]
        rows.append(row + [""] * (len(head) - len(row)))
    chosen = [
        f"{result['name']}{', guided' if result['guided'] else ''}, batch {result['batch']}: auto chose "
        + "; ".join(next(line["solver"] for line in result["settings"] if line["setting"] == AUTO))
        for result in results
    ]
    return "\n".join([text_table(rows), "", *chosen])


def _numbers(parser: argparse.ArgumentParser, text: str) -> list[int]:
    values = text.split(",")
    if not all(value.isdecimal() and 1 <= int(value) <= 1024 for value in values):
        parser.error(f"--batch must be numbers from 1 to 1024, got {text!r}")
    return [int(value) for value in values]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="DIR", type=Path, help="folder with the source of the original")
    parser.add_argument("--torch-python", metavar="FILE", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--config", metavar="DIR", action="append", help="folder with a config.json (repeatable)")
    parser.add_argument("--batch", default="1,4,16", help="batch sizes")
    parser.add_argument("--guidance", choices=("both", "with", "without"), default="both")
    parser.add_argument("--target", type=float, default=1e-3, help="largest relative error of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of each side")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tiny flow, one round: shows that everything runs")
    options = parser.parse_args(arguments)
    batches = [TINY_SIZES.batch] if options.quick else _numbers(parser, options.batch)
    for name in ("rounds", "threads"):
        if not 1 <= getattr(options, name) <= 10_000:
            parser.error(f"--{name} must be from 1 to 10000, got {getattr(options, name)}")
    if not 1e-6 <= options.target <= 1:
        parser.error(f"--target must be from 1e-6 to 1, got {options.target}")
    rounds, blocks = (1, (4,)) if options.quick else (options.rounds, BLOCKS)
    measurement = Measurement(options.original, options.torch_python, options.threads, rounds, options.target, blocks)
    machine = {"processor": processor(), "cores": cores_for(options.threads), "threads": options.threads}
    settings = {"rounds": rounds, "target": options.target, "baseline": measurement.other}
    results: list[dict[str, Any]] = []
    try:
        if options.original is not None:
            find_class(options.original, Names())
        folders = list(map(Path, options.config or (RECORDED / "image", RECORDED / "video")))
        flows = {"tiny": TINY} if options.quick else {folder.name: original_arguments(folder) for folder in folders}
        for name, flow in flows.items():
            for guided in (False,) if options.quick else _guided(options.guidance, flow):
                for batch in batches:
                    sizes = TINY_SIZES if options.quick else Sizes(batch=batch)
                    results.append({"name": name, **measurement.run(flow, sizes, guided=guided)})
                    print(table(results[-1:], measurement.other), file=sys.stderr, flush=True)
                    if options.json:  # what is measured is kept, whatever comes next
                        write_json(options.json, {**machine, **settings, "results": results})
    except ValueError as error:
        parser.error(str(error))
    except SideError as error:
        print(f"time_to_sample: {error}", file=sys.stderr)
        return 1
    print(table(results, measurement.other), flush=True)
    for reason in dict.fromkeys(result["left_out"] for result in results if result["left_out"]):
        print(f"The {measurement.other} is left out: {reason}")
    return 0


def _guided(choice: str, flow: dict[str, Any]) -> tuple[bool, ...]:
    """Whether to measure without and with guidance, which needs text."""
    without = (False,) if choice != "with" else ()
    return without + ((True,) if choice != "without" and flow.get("txt_size") else ())


if __name__ == "__main__":
    sys.exit(main())
