"""How time and memory grow with the length of the sequence, beside the PyTorch original or a plain transformer.

    python experiments/benchmarks/growth.py --json growth.json --plot growth.png
    python experiments/benchmarks/growth.py --original DIR --torch-python FILE
    python experiments/benchmarks/growth.py --quick      # 16 and 64 tokens: shows that everything runs

One image of 256, 1,024, 4,096 and 16,384 tokens (--tokens) goes through the image flow of tests/goldens/bench with one
layer in each shallow block and four in the deep one (7 layers of width 256, 32 text tokens, float32): forward, forward
+ backward, and an inverse, for which every side has its fastest of the sequential solver and Jacobi iteration in chunks
of 64 tokens. An operation that takes more than --once seconds runs once, others --rounds times, of which the fastest
counts; compilation is not included. An operation is left out where four times the tokens would take more than --limit
seconds at sixteen times the time, or where a side fails.

Memory of both passes is what a run adds to the size of its process at the peak, by Linux; "largest array" is that of
our compiled program. The other side is the original (see against_original.py), or without --original a plain
transformer of the same shapes, which decodes with our numbers of evaluations; without PyTorch there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from against_original import processor
from flow_operations import RECORDED, TINY, JacobiSetting, Sizes, original_arguments
from growth_plot import plot
from original_adapter import Names, find_class
from turns import SideError, SideProcess, cores_for

from starflow_jax.core.figures import text_table, write_json

PASSES = ("forward", "forward+backward")
INVERSES = ("sequential", JacobiSetting(64).name)
# What is reported: both passes, and the fastest inverse.
INVERSE = "inverse"
TOKENS, QUICK_TOKENS = (256, 1024, 4096, 16384), (16, 64)


@dataclasses.dataclass(frozen=True)
class Growth:
    """What to run.

    Attributes:
      original: folder of the original, None for the plain transformer; python: has PyTorch; threads: of each side.
      rounds: runs of an operation that takes at most `once` seconds. limit: seconds that an operation may take.
    """

    original: Path | None
    python: str
    threads: int
    rounds: int
    once: float
    limit: float

    @property
    def other(self) -> str:
        """The name of the other side."""
        return "plain transformer" if self.original is None else "original"

    def run(self, arguments: dict[str, Any], sizes: Sizes, tokens: Sequence[int]) -> list[dict[str, Any]]:
        """A line for each number of tokens, in increasing order, and each operation.

        Raises:
          SideError: our side fails.
        """
        lines: list[dict[str, Any]] = []
        too_long: dict[tuple[str, str], str] = {}
        for count in sorted(tokens):
            for line in self._one_length(arguments | {"img_size": math.isqrt(count)}, sizes, too_long):
                lines.append({"tokens": count, **line})
            print(f"{count} tokens: done", file=sys.stderr, flush=True)
        return lines

    def _one_length(
        self, arguments: dict[str, Any], sizes: Sizes, too_long: dict[tuple[str, str], str]
    ) -> list[dict[str, Any]]:
        """The lines of one length; `too_long`: by side and setting, why it is left out, which is added to."""
        with (
            tempfile.TemporaryDirectory() as folder,
            SideProcess("ours", "our_side", self.threads) as ours,
            self._other_process() as theirs,
        ):
            request = {"arguments": arguments, "sizes": dataclasses.asdict(sizes), "threads": self.threads}
            request |= {"folder": folder, "inverses": INVERSES[1:]}
            prepared = ours.ask("prepare", **request)
            names = [name for name in (*PASSES, *INVERSES) if ("ours", name) not in too_long]
            measured = {name: self._measure(ours, name) for name in names}
            described = {name: ours.ask("describe", operation=name) for name in names}
            try:
                if self.original is not None:
                    own = {"original": str(self.original), "names": dataclasses.asdict(Names())}
                    theirs.ask("prepare", **own, **prepared["facts"]["jacobi"], **request)
                else:
                    inverses = {name: described[name]["chunks"] for name in names if name in INVERSES}
                    blocks = {"blocks": prepared["facts"]["blocks"], "denoiser": None}
                    theirs.ask("prepare", **blocks, inverses=inverses, threads=self.threads)
                failed = ""
            except SideError as error:
                failed = str(error)
            others: dict[str, Any] = {}
            reasons: dict[str, str] = {}
            for name in (*PASSES, *INVERSES):
                reason = failed or too_long.get(("theirs", name), "")
                if not reason and name in measured:
                    try:
                        others[name] = self._measure(theirs, name)
                    except SideError as error:
                        reason = str(error)
                reasons[name] = reason
        for side, settings in (("ours", measured), ("theirs", others)):
            for name, one in settings.items():
                expected = 16 * one["seconds"]
                if expected > self.limit:
                    too_long[side, name] = f"it would take about {expected:.0f} s (--limit {self.limit:g})"
        lines = [_line(name, measured, others, described, reasons) for name in PASSES if name in measured]
        if not _fastest(measured):
            return lines
        inverse = _line(_fastest(measured), measured, others, described, reasons, _fastest(others))
        return [*lines, inverse | {"operation": INVERSE}]

    def _other_process(self) -> SideProcess:
        side = "plain_transformer" if self.original is None else "original_adapter"
        return SideProcess(self.other, side, self.threads, python=self.python)

    def _measure(self, side: SideProcess, name: str) -> dict[str, Any]:
        """The shortest time of an operation in seconds, and the peak of its memory in bytes."""
        side.ask("compile", operation=name)
        replies = [side.ask("time", operation=name)]
        while replies[0]["seconds"] <= self.once and len(replies) < self.rounds:
            replies.append(side.ask("time", operation=name))
        # The first run may add memory that the process keeps; later ones, and the smaller inverses, fill it again.
        peak = replies[0]["peak"] if name in PASSES else None
        return {"seconds": min(reply["seconds"] for reply in replies), "peak": peak}


def _fastest(measured: dict[str, Any]) -> str:
    """The fastest inverse that was measured, or the empty string."""
    return min((name for name in INVERSES if name in measured), key=lambda n: measured[n]["seconds"], default="")


def _line(
    name: str,
    measured: dict[str, Any],
    others: dict[str, Any],
    described: dict[str, Any],
    reasons: dict[str, str],
    their_name: str | None = None,
) -> dict[str, Any]:
    """What is reported of an operation that was measured."""
    their_name = name if their_name is None else their_name
    line = {"operation": name, "ours": measured[name] | {"setting": name}}
    line |= {key: described[name][key] for key in ("largest_array", "evaluations") if key in described[name]}
    if their_name in others:
        line["theirs"] = others[their_name] | {"setting": their_name}
        line["ratio"] = line["theirs"]["seconds"] / line["ours"]["seconds"]
    elif reasons.get(name):
        line["left_out"] = reasons[name]
    return line


def table(lines: Sequence[dict[str, Any]], other: str) -> str:
    """The figures as Markdown, and a sentence for each operation that the other side lacks."""
    both = any("theirs" in line for line in lines)
    head = ["operation", "tokens", "ours s", "MiB", "largest array"]
    rows = [head + ([f"{other} s", "MiB", f"{other} / ours"] if both else [])]
    for line in lines:
        ours = line["ours"]
        setting = "" if ours["setting"] == line["operation"] else f" ({ours['setting']})"
        row = [line["operation"] + setting, str(line["tokens"]), f"{ours['seconds']:.3f}", _mebibytes(ours)]
        row.append(" x ".join(map(str, line["largest_array"])))
        if "theirs" in line:
            theirs = line["theirs"]
            row += [f"{theirs['seconds']:.3f}", _mebibytes(theirs), f"{line['ratio']:.2f}"]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    rows[1:] = sorted(rows[1:], key=lambda row: [*PASSES, INVERSE].index(row[0].split(" (")[0]))
    left_out = dict.fromkeys(
        f"{line['operation']} of {line['tokens']} tokens is left out of the {other}: {line['left_out']}"
        for line in lines
        if "left_out" in line and both
    )
    return "\n".join([text_table(rows), *left_out])


def _mebibytes(one: dict[str, Any]) -> str:
    return "" if one["peak"] is None else f"{one['peak'] / 2**20:.0f}"


def _tokens(parser: argparse.ArgumentParser, text: str) -> Iterator[int]:
    for part in text.split(","):
        if not part.isdecimal() or math.isqrt(int(part)) ** 2 != int(part) or not 16 <= int(part) <= 2**16:
            parser.error(f"--tokens must be square numbers from 16 to 65536, got {part!r}")
        yield int(part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="DIR", type=Path, help="folder with the source of the original")
    parser.add_argument("--torch-python", metavar="FILE", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="lengths, square numbers")
    parser.add_argument("--rounds", type=int, default=3, help="runs of an operation")
    parser.add_argument("--once", type=float, default=5.0, help="seconds above which an operation runs once")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that an operation may take")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of each side")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="also draw them there (.png)")
    parser.add_argument("--quick", action="store_true", help="a tiny flow of few tokens: shows that everything runs")
    options = parser.parse_args(arguments)
    tokens = QUICK_TOKENS if options.quick else list(_tokens(parser, options.tokens))
    for name in ("rounds", "threads", "once", "limit"):
        if not 0 < getattr(options, name) < float("inf"):
            parser.error(f"--{name} must be above 0, got {getattr(options, name)}")
    if options.plot is not None and options.plot.suffix != ".png":
        parser.error(f"--plot must end in .png, got {options.plot}")
    growth = Growth(
        options.original, options.torch_python, options.threads, options.rounds, options.once, options.limit
    )
    try:
        if options.original is not None:
            find_class(options.original, Names())
        arguments_of_flow = TINY if options.quick else original_arguments(RECORDED / "image")
        layers = {} if options.quick else {"layers_per_block": [1, 1, 1, 4]}
        lines = growth.run(arguments_of_flow | layers, Sizes(batch=1, text=3 if options.quick else 32), tokens)
    except ValueError as error:
        parser.error(str(error))
    except SideError as error:
        print(f"growth: {error}", file=sys.stderr)
        return 1
    print(table(lines, growth.other), flush=True)
    if options.json:
        machine = {"processor": processor(), "cores": cores_for(options.threads), "threads": options.threads}
        write_json(options.json, {**machine, "baseline": growth.other, "lines": lines})
    if options.plot:
        plot(options.plot, lines, growth.other)
    return 0


if __name__ == "__main__":
    sys.exit(main())
