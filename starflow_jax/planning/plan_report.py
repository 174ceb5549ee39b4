"""Formats plans as text."""

from __future__ import annotations

from starflow_jax.core.figures import text_table
from starflow_jax.planning.estimate import Plan

# In the order of the report: the compiler's estimate, if there is one, leads.
ESTIMATES = {
    "compiler": "the compiler's cycle estimate and schedule of collectives",
    "exposed": "roofline, no overlap",
    "hidden": "roofline, all overlap that is possible: an upper bound at this share of the peak",
}


def report(plan: Plan, iterations: int = 10) -> str:
    """Formats all figures of a plan; iterations: those of each chunk, for the time of a sample."""
    work, memory, slices = plan.work, plan.memory, plan.mesh["slices"]
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    shape = (
        f"{work.rows}x{work.columns} tokens" if work.frames is None else f"{work.frames} frames of {work.frame} tokens"
    )
    what = {"train": "training step", "inverse": "Jacobi iteration of the deep block"}[plan.program]
    rows = [
        [f"{plan.experiment}, {what}", f"{slices} slices of {plan.topology}" if slices > 1 else plan.topology],
        ["devices", f"{plan.devices}: {mesh}"],
        ["parameters", f"{plan.parameters:,}" + (f", stored as {plan.quantise}" if plan.quantise else "")],
        ["batch", f"{plan.batch} of {shape}" + (f" + {work.text} of text" if work.text else "")],
    ]
    if plan.program == "train":
        rows.append(["gradient accumulation steps", str(plan.accumulate)])
        rows.append(["rematerialisation", plan.remat])
    rows += [[f"{name}, per device", gib(amount)] for name, amount in plan.parts if amount]
    rows += [
        ["arguments per device", gib(memory.arguments)],
        ["temporaries per device", gib(memory.temporaries)],
        ["peak of usable memory", f"{gib(memory.peak)} of {gib(memory.usable)}"],
        ["verdict", verdict(plan)],
        ["model FLOPs", f"{plan.model_flops:.3e}"],
        ["computed FLOPs", f"{plan.hardware_flops + plan.kernel_flops:.3e}"],
    ]
    if plan.compile_seconds is not None:
        rows.append(["compilation time", f"{plan.compile_seconds:.0f} s"])
        rows += [["with" if not i else "", flag] for i, flag in enumerate(plan.flags.split())]
    rows += [["note" if not i else "", note] for i, note in enumerate(plan.notes)]
    tables = [text_table(rows)]
    if plan.transfers:
        head = ["collectives per step and device", "along", "operations", "GB sent", "overlapped"]
        tables.append(text_table([head, *(transfer_row(plan, index) for index in range(len(plan.transfers)))]))
    if plan.estimates:
        head = ["estimate", "step s", "MFU", "products s", "attention s", "memory s", "collectives s"]
        lines = []
        for estimate in sorted(plan.estimates, key=lambda estimate: list(ESTIMATES).index(estimate.name)):
            parts = (estimate.products, estimate.kernels, estimate.memory, estimate.collectives)
            lines.append(
                [
                    ESTIMATES[estimate.name],
                    f"{estimate.seconds:.4g}",
                    f"{estimate.mfu:.1%}",
                    *(f"{p:.3g}" for p in parts),
                ]
            )
        tables.append(text_table([head, *lines]))
        if plan.chunks:
            tables.append(sample_time(plan, iterations))
    return "\n\n".join(tables)


def sample_time(plan: Plan, iterations: int) -> str:
    """States how long the deep block takes for a batch of samples, if every chunk takes this number of iterations."""
    evaluations = plan.chunks * iterations
    names = {
        "compiler": "by the compiler's cycles",
        "exposed": "by the roofline without overlap",
        "hidden": "with all of it",
    }
    times = [
        f"{evaluations * estimate.seconds:.3g} s {names[estimate.name]}"
        for estimate in sorted(plan.estimates, key=lambda estimate: list(ESTIMATES).index(estimate.name))
    ]
    frames = "" if plan.work.frames is None else f" of {plan.work.frames} frames of tokens"
    what = "a sample" if plan.batch == 1 else f"a batch of {plan.batch} samples"
    return (
        f"{what}{frames}, {plan.chunks} chunks at {iterations} iterations each, every one as long as the last: "
        f"{', '.join(times)}.\nNot measured; the deep block alone, without the other blocks, text and decoding."
    )


def transfer_row(plan: Plan, index: int) -> list[str]:
    """Formats one row of the table of collectives."""
    transfer = plan.transfers[index]
    axes = "part of an axis" if transfer.axes is None else " x ".join(transfer.axes)
    overlapped = f"{transfer.overlapped:.0%}" if plan.source == "compiler" else "-"
    return [transfer.kind, axes, str(transfer.count), f"{transfer.sent / 1e9:.3g}", overlapped]


def short_report(plan: Plan) -> str:
    """Formats a plan as one line."""
    return f"  batch {plan.batch}: {gib(plan.memory.peak)} of {gib(plan.memory.usable)}, {verdict(plan)}"


def verdict(plan: Plan) -> str:
    """States whether the plan fits in memory, or how much memory is missing."""
    return "fits" if plan.memory.fits else f"does not fit, short by {gib(plan.memory.short)}"


def gib(amount: float) -> str:
    """Formats bytes in GiB, or in MiB if small."""
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**28 else f"{amount / 2**20:.1f} MiB"
