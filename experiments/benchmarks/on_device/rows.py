"""The rows of the table: what was run, how it ended, and its figures in a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Stage = Literal["correctness", "timing", "steps", "tuning"]
STAGES: tuple[Stage, ...] = ("correctness", "timing", "steps", "tuning")
# Rows that say that something is wrong with a kernel or a program.
FAILED = ("wrong", "error", "crash", "hang", "stuck")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      stage: its part of the run.
      name: what was run, unique in its stage.
      status: "ok", "lowered", "unsupported", "not run", or one of `FAILED`.
      seconds: that it took.
      result: a sentence of figures, or the reason of the status.
      figures: what the process wrote, None if nothing.
      tail: the last lines that a failed process printed.
    """

    stage: Stage
    name: str
    status: str
    seconds: float
    result: str = ""
    figures: Mapping[str, Any] | None = None
    tail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the row says that something is wrong."""
        return self.status in FAILED


def described(kind: str, figures: Mapping[str, Any]) -> str:
    """What a process has measured, as a sentence.

    Args:
      kind: of the process: "check", "attention", "jacobi_update", "decoding_step", "plan", "planned_step", "tune".
      figures: what it wrote.
    """
    return _DESCRIBED[kind](figures)


def _check(figures: Mapping[str, Any]) -> str:
    if "largest_error" not in figures:
        return str(figures.get("reason", ""))
    error = f"largest error {figures['largest_error']:.1e} of {figures['tolerance']:.1e}"
    between = f"{figures['between_runs']:.0e}" if figures["between_runs"] else "0"
    return "; ".join([*([figures["reason"]] if "reason" in figures else []), error, f"between runs {between}"])


def _attention(figures: Mapping[str, Any]) -> str:
    parts = []
    for shape in figures["shapes"]:
        name = shape["name"] + (" with gradients" if shape["backward"] else "")
        times = ", ".join(
            f"{way} {1e3 * one['seconds']:.4g} ms ({one['tflops']:.0f} TFLOP/s)" for way, one in shape["ways"].items()
        )
        parts.append(f"{name}: {times or 'nothing runs'}")
    return "; ".join(parts)


def _jacobi_update(figures: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{line['case']['name']}: {line['implementation']} {line['microseconds']['kernel']:.1f} us, "
        f"xla {line['microseconds']['xla']:.1f} us, {line['of_copy']:.0%} of a copy"
        for line in figures["lines"]
    )


def _decoding_step(figures: Mapping[str, Any]) -> str:
    return "; ".join(
        f"chunk of {line['chunk']}: {line['milliseconds'] or 0:.3f} ms, {line['of_floor'] or 0:.0%} of reading"
        for line in figures["lines"]
    )


def _plan(figures: Mapping[str, Any]) -> str:
    parts = []
    for plan in figures["plans"]:
        times = ", ".join(f"{one['name']} {1e3 * one['seconds']:.4g} ms" for one in plan["estimates"])
        memory = f"{plan['memory']['peak'] / 2**30:.3g} GiB"
        parts.append(f"{plan['program']} on {plan['topology']} (by the {plan['source']}): {times}, {memory}")
    return "; ".join(parts)


def _planned_step(figures: Mapping[str, Any]) -> str:
    parts = []
    for line in figures["lines"]:
        ratios = [f"{ratio:.2f}x {name}" for name, ratio in line["plan"].get("time", {}).items()]
        if "memory" in line["plan"]:
            ratios.append(f"{line['plan']['memory']:.2f}x its memory")
        against = f"; against the plan {', '.join(ratios)}" if ratios else ""
        measured = f"{1e3 * line['seconds']:.4g} ms, {line['of_product']:.0%} of a product"
        parts.append(f"{line['program']}: {measured}{against}")
    return "; ".join(parts)


def _tune(figures: Mapping[str, Any]) -> str:
    timed = [choice for choice in figures["choices"] if "both" in choice]
    if not timed:
        return f"none of {len(figures['choices'])} block sizes runs"
    best = min(timed, key=lambda choice: choice["both"])
    own = next((choice for choice in timed if choice["chosen"]), None)
    beside = f", the default's {1e3 * own['both']:.4g} ms" if own else ", and the default's do not run"
    return f"{len(timed)} block sizes; the fastest {blocks(best)} {1e3 * best['both']:.4g} ms with gradients{beside}"


def blocks(choice: Mapping[str, Any]) -> str:
    """Block sizes as numbers."""
    return "/".join(str(size) for name, size in choice["tiles"].items() if name != "memory")


_DESCRIBED = {
    "check": _check,
    "attention": _attention,
    "jacobi_update": _jacobi_update,
    "decoding_step": _decoding_step,
    "plan": _plan,
    "planned_step": _planned_step,
    "tune": _tune,
}


def find(rows: Sequence[Row], stage: Stage, start: str) -> list[Row]:
    """The rows of a stage whose name begins like this."""
    return [row for row in rows if row.stage == stage and row.name.startswith(start)]
