"""Which defaults a run on a device should change, by these rules.

- A GPU kernel becomes the default where every check of it is "ok" and it is nowhere slower than 0.98 of the fastest
  other implementation that JAX calls (XLA, cuDNN, tokamax) on the shapes that were timed: then `UNTIMED_ON_GPUS` in
  `kernels/kernel_choice.py` goes for it. Timing is needed: with no shape timed, nothing changes.
- A TPU kernel stays the default unless a check of it failed or it is slower than 0.98 of XLA on a shape.
- On GPUs, the implementation that is fastest on every causal training shape, the own kernel aside, should be the
  default of those calls as long as the own kernel is not.
- Block sizes change where the fastest ones are more than 3 % faster with gradients than those that the model chose.
- `Chip.share` of `costs/chips.py` changes where a large product reaches a share of the published peak that
  differs from it by more than 0.05.
- The model of `starflow plan` needs work where a step takes less than 0.9 of its "hidden" or more than 1.1 of its
  "exposed" time, or its memory is off by more than a tenth.

An interpreted run changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from starflow_jax.experiments.benchmarks.on_device.rows import Row, blocks, find
from starflow_jax.experiments.benchmarks.on_device.stages import Device

AS_FAST, BETTER_BLOCKS, SHARE, TIME, MEMORY = 0.98, 1.03, 0.05, 0.1, 0.1
_OTHERS = ("xla", "cudnn", "tokamax")


@dataclasses.dataclass(frozen=True)
class Default:
    """One default.

    Attributes:
      name: of the default, as in the code.
      verdict: whether it should change; "unknown" where the run does not tell.
      sentence: why.
    """

    name: str
    verdict: Literal["change", "keep", "unknown"]
    sentence: str


def recommended(
    device: Device, rows: Sequence[Row], matrix_share: float, peak: float | None, current: str = "xla"
) -> list[Default]:
    """The defaults that the rows speak about.

    Args:
      device: of the run.
      rows: of all stages.
      matrix_share: the share of the peak that plans assume for products.
      peak: published bfloat16 FLOP/s of the device, None where unknown.
      current: the implementation that causal attention of whole sequences runs by default.
    """
    if device.interpreted:
        return []
    shapes = [
        shape for row in find(rows, "timing", "attention") if row.figures is not None for shape in row.figures["shapes"]
    ]
    result = [_kernel(device, "attention", rows, shapes), _kernel(device, "decoding", rows, shapes)]
    result.append(_kernel(device, "jacobi_update", rows, _update_shapes(rows)))
    others = _fastest_other(shapes, current) if device.platform == "gpu" else ()
    return [*result, *others, *_blocks(rows), *_share(rows, matrix_share, peak), *_plans(rows)]


def _update_shapes(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The timed updates in the form of the shapes of attention."""
    updates = [row.figures for row in find(rows, "timing", "Jacobi update") if row.figures is not None]
    lines = [line for figures in updates for line in figures["lines"]]
    return [
        {
            "name": line["case"]["name"],
            "ways": {
                "fused": {"seconds": line["microseconds"]["kernel"]},
                "xla": {"seconds": line["microseconds"]["xla"]},
            },
        }
        for line in lines
        if line["implementation"] == "pallas"
    ]


def ratio(shape: Mapping[str, Any]) -> float | None:
    """The time of the fastest other implementation divided by the kernel's; None where either was not timed."""
    times = {way: one["seconds"] for way, one in shape["ways"].items()}
    others = [times[way] for way in _OTHERS if way in times]
    return min(others) / times["fused"] if others and "fused" in times else None


def _kernel(device: Device, kernel: str, rows: Sequence[Row], shapes: Sequence[Mapping[str, Any]]) -> Default:
    """Whether a kernel should be what runs by default."""
    gpu = device.platform == "gpu"
    name = f"UNTIMED_ON_GPUS ({kernel})" if gpu else f"the TPU kernel of {kernel}"
    of_kernel = find(rows, "correctness", f"{device.platform} {kernel}: ")
    bad = [row for row in of_kernel if row.failed]
    if bad:
        what = f"{len(bad)} of {len(of_kernel)} checks failed, the first one {bad[0].name!r}: {bad[0].status}"
        sentence = f"{what}; the kernel must not run by default until it is mended"
        return Default(name, "keep" if gpu else "change", sentence)
    ran = [row for row in of_kernel if row.status == "ok"]
    not_run = [row for row in of_kernel if row.status == "not run"]
    if not ran or not_run:
        reason = "no check supports this device" if of_kernel and not not_run else "not every check was run"
        return Default(name, "unknown", f"{reason}, so nothing changes")
    if kernel != "jacobi_update":
        cached = kernel == "decoding"
        shapes = [shape for shape in shapes if ("cache" in shape["name"]) == cached]
    timed = find(rows, "timing", "Jacobi update" if kernel == "jacobi_update" else "attention")
    broken = [row.name for row in timed if row.failed]
    broken += [_title(shape) for shape in shapes if "fused" in shape.get("missing", {})]
    if broken:
        sentence = (
            f"every check is ok, but the timing of {broken[0]!r} failed; nothing changes before that is understood"
        )
        return Default(name, "keep" if gpu else "unknown", sentence)
    ratios = {_title(shape): value for shape in shapes if (value := ratio(shape)) is not None}
    if not ratios:
        return Default(name, "unknown", "every check is ok, and no shape was timed beside another implementation")
    worst = min(ratios, key=lambda shape: ratios[shape])
    beside = f"at worst {ratios[worst]:.2f} of the speed of the fastest other implementation, for {worst}"
    if ratios[worst] >= AS_FAST:
        return Default(name, "change" if gpu else "keep", f"all {len(ran)} checks are ok, and it has {beside}")
    return Default(name, "keep" if gpu else "change", f"all {len(ran)} checks are ok, but it has {beside}")


def _title(shape: Mapping[str, Any]) -> str:
    return shape["name"] + (" with gradients" if shape.get("backward") else "")


def _fastest_other(shapes: Sequence[Mapping[str, Any]], current: str) -> Iterator[Default]:
    """The fastest implementation that is none of this project's, on causal shapes with gradients."""
    winners: dict[str, list[str]] = {}
    for shape in shapes:
        times = {way: shape["ways"][way]["seconds"] for way in _OTHERS if way in shape["ways"]}
        if shape["backward"] and not shape["text"] and len(times) > 1:
            winners.setdefault(min(times, key=lambda way: times[way]), []).append(shape["name"])
    if len(winners) == 1:
        (way, names), *_ = winners.items()
        yield Default(
            "attention of whole causal sequences, without own kernels",
            "keep" if way == current else "change",
            f"{way} is the fastest of the others on all {len(names)} causal shapes with gradients",
        )
    elif winners:
        each = "; ".join(f"{way} on {', '.join(names)}" for way, names in winners.items())
        yield Default("attention of whole causal sequences, without own kernels", "unknown", f"the fastest are {each}")


def _blocks(rows: Sequence[Row]) -> Iterator[Default]:
    for row in find(rows, "tuning", ""):
        timed = [choice for choice in (row.figures or {}).get("choices", ()) if "both" in choice]
        own = next((choice for choice in timed if choice["chosen"]), None)
        if not timed:
            continue
        best = min(timed, key=lambda choice: choice["both"])
        name = f"block sizes, {row.name}"
        if own is None:
            yield Default(name, "change", f"those of the model do not run, and {blocks(best)} do")
            continue
        gain = own["both"] / best["both"]
        verdict: Literal["change", "keep"] = "change" if gain > BETTER_BLOCKS else "keep"
        yield Default(name, verdict, f"{blocks(best)} are {gain:.2f}x as fast with gradients as {blocks(own)}")


def _share(rows: Sequence[Row], assumed: float, peak: float | None) -> Iterator[Default]:
    reached = [
        row.figures["product_tflops"] * 1e12
        for row in find(rows, "timing", "attention")
        if row.figures is not None and row.figures.get("product_tflops")
    ]
    if not reached or peak is None:
        return
    share = max(reached) / peak
    verdict: Literal["change", "keep"] = "change" if abs(share - assumed) > SHARE else "keep"
    sentence = f"a large bfloat16 product reaches {share:.2f} of the published peak, and plans assume {assumed:g}"
    yield Default("Chip.share", verdict, sentence)


def _plans(rows: Sequence[Row]) -> Iterator[Default]:
    for row in find(rows, "steps", ""):
        for line in (row.figures or {}).get("lines", ()):
            against = line.get("plan", {})
            times = against.get("time", {})
            if not times:
                continue
            low, high = times.get("hidden", 1.0), times.get("exposed", 1.0)
            wrong = []
            if low < 1 - TIME:
                wrong.append(f"it takes {low:.2f} of the lower bound")
            if high > 1 + TIME:
                wrong.append(f"it takes {high:.2f} of the time without any overlap")
            if abs(against.get("memory", 1.0) - 1) > MEMORY:
                wrong.append(f"it needs {against['memory']:.2f} of the memory")
            fine = f"it takes {low:.2f} of the lower bound and {high:.2f} of the time without any overlap"
            yield Default(f"the plan of {row.name}", "change" if wrong else "keep", "; ".join(wrong) or fine)
