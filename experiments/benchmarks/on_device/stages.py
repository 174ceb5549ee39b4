"""What the stages run: one command a process, each with its own limit of time."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from starflow_jax.experiments.benchmarks.on_device.kernel_grid import Platform, checks
from starflow_jax.experiments.benchmarks.on_device.rows import Row, Stage, find

BENCHMARKS = Path(__file__).parents[1]
CHECK = BENCHMARKS / "on_device" / "check_kernel.py"
# Parts of the names of the shapes of attention.py; a process times the shapes of one.
_SHAPES = ("3B", "7B", "heads of 128", "cache of 8192", "cache of 33648")
# Sizes that are tuned, as options of tune_attention.py.
_TUNED = {
    "1,152 slots, heads of 64": ("--slots", "1152"),
    "2,048 slots, heads of 128": ("--slots", "2048", "--heads", "24", "--batch", "4", "--dim", "128"),
    "33,646 slots, heads of 64": ("--slots", "33646", "--heads", "8", "--batch", "1", "--rounds", "3"),
}
# The layers and images of the steps: few, so that the smallest chips hold them, at full width.
_LAYERS, _IMAGES, _TINY_IMAGES = 4, 8, 2
# `jax.Device.device_kind` begins with, and the name in `costs.chips` and the shape of one device.
_CHIPS = {
    "TPU v4": "v4:1x1x1", "TPU v5 lite": "v5e:1x1", "TPU v5e": "v5e:1x1", "TPU v5": "v5p:1x1x1", "TPU v6": "v6e:1x1",
    "NVIDIA H100": "h100:1", "NVIDIA H200": "h200:1", "NVIDIA B200": "b200:1", "NVIDIA A100-SXM4-80": "a100-80:1",
    "NVIDIA A100-SXM4-40": "a100-40:1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Device:
    """The device of a run, as `probe.py` sees it.

    Attributes:
      platform: "cpu", "gpu" or "tpu"; kind: `jax.Device.device_kind`; capability: of a GPU.
      attention: the implementation of causal attention of whole sequences that runs there by default.
      interpreted: kernels of both platforms are interpreted on a CPU.
    """

    platform: str
    kind: str
    capability: str = ""
    attention: str = "xla"
    interpreted: bool = False

    @property
    def topology(self) -> str | None:
        """One device of this kind as `starflow plan` names it; None where no peaks of it are published there."""
        if self.interpreted:
            return "h100:1"
        return next((name for start, name in _CHIPS.items() if self.kind.startswith(start)), None)


@dataclasses.dataclass(frozen=True)
class Step:
    """A process to run.

    Attributes:
      stage, name: of its row.
      kind: how its figures are described (`rows.described`).
      command: without the option --json, which names the file of its figures.
      limit_s: seconds after which it is stopped.
      after: names of rows of its stage; the step is left out if one of them was stopped, or crashed.
      variables: of its environment.
    """

    stage: Stage
    name: str
    kind: str
    command: Sequence[str]
    limit_s: float
    after: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


def steps(stage: Stage, device: Device, rows: Sequence[Row], folder: Path) -> Iterator[Step]:
    """The steps of a stage, in order.

    Args:
      stage: which one.
      device: what they run on.
      rows: of everything before; rows that are appended while the iterator runs count, too.
      folder: where the figures of steps are, `folder / file_name(step)`.
    """
    variables = {"JAX_PLATFORMS": "cpu"} if device.interpreted else {}
    for step in _STEPS[stage](device, rows, folder):
        yield dataclasses.replace(step, variables={**variables, **step.variables})


def file_name(stage: Stage, name: str) -> str:
    """The name of the file of a step's figures."""
    return f"{stage}-{''.join(c if c.isalnum() else '-' for c in name)}.json"


def _script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(BENCHMARKS / name), *options]


def _correctness(device: Device, rows: Sequence[Row], folder: Path) -> Iterator[Step]:
    platforms: tuple[Platform, ...] = ("tpu", "gpu")
    for platform in platforms:
        if not device.interpreted and device.platform != platform:
            continue
        for check in checks(platform, interpreted=device.interpreted):
            command = [sys.executable, str(CHECK), "--platform", platform, "--check", check.name]
            command += ["--interpret"] if device.interpreted else []
            start = f"{platform} {check.kernel}: "
            forward = (start + check.name.removesuffix(", gradients"),) if check.name.endswith(", gradients") else ()
            yield Step("correctness", start + check.name, "check", command, 120.0, forward)


def _timing(device: Device, rows: Sequence[Row], folder: Path) -> Iterator[Step]:
    quick = ["--quick"] if device.interpreted else []
    unsafe = ["--without", "fused"] if stopped(rows, "attention") or stopped(rows, "decoding") else []
    for shapes in ("quick",) if device.interpreted else _SHAPES:
        name = f"attention, {shapes}"
        yield Step("timing", name, "attention", _script("attention.py", "--only", shapes, *quick, *unsafe), 240.0)
        if any(row.failed for row in find(rows, "timing", name)) and not unsafe:
            # The kernel may be what failed: the others are timed without it.
            command = _script("attention.py", "--only", shapes, *quick, "--without", "fused")
            yield Step("timing", f"{name}, without the kernel", "attention", command, 240.0)
    if stopped(rows, "jacobi_update"):
        yield Step("timing", "Jacobi update", "jacobi_update", (), 0.0)
    else:
        yield Step("timing", "Jacobi update", "jacobi_update", _script("jacobi_update.py", *quick), 180.0)
    yield Step("timing", "decoding step", "decoding_step", _script("decoding_step.py", *quick), 240.0)


def _planned(device: Device, rows: Sequence[Row], folder: Path) -> Iterator[Step]:
    quick = ["--quick"] if device.interpreted else []
    images = _TINY_IMAGES if device.interpreted else _IMAGES
    layers = 1 if device.interpreted else _LAYERS
    plan: list[str] = []
    if device.topology is not None:
        experiment = f"{BENCHMARKS.parent / 'starflow_3b_t2i.py'}{':tiny' if device.interpreted else ''}"
        fields = ("flow.num_blocks=1", f"flow.layers_per_block=({layers},)", f"train.batch_size={images}")
        options = ["--config", experiment, "--topology", device.topology, "--program", "all"]
        command = [sys.executable, "-m", "starflow_jax", "plan", *options, *(f"--config.{field}" for field in fields)]
        # The plan is made by processors: the device stays free for whoever else uses it.
        yield Step("steps", "plan", "plan", command, 300.0, variables={"JAX_PLATFORMS": "cpu"})
        if any(row.status == "ok" for row in find(rows, "steps", "plan")):
            plan = ["--plan", str(folder / file_name("steps", "plan"))]
    for program, name in (("train", "training step of 3B width"), ("inverse", "Jacobi iteration of 3B width")):
        sizes = ["--layers", str(layers), "--batch", str(images), "--program", program]
        yield Step("steps", name, "planned_step", _script("planned_step.py", *sizes, *quick, *plan), 300.0)


def _tuning(device: Device, rows: Sequence[Row], folder: Path) -> Iterator[Step]:
    if device.interpreted:
        tiny = ("--interpret", "--slots", "130", "--heads", "1", "--batch", "1", "--rounds", "1")
        yield Step("tuning", "130 slots", "tune", _script("tune_attention.py", *tiny), 240.0)
        return
    for name, options in _TUNED.items():
        command = () if stopped(rows, "attention") else _script("tune_attention.py", *options)
        yield Step("tuning", name, "tune", command, 300.0)


def stopped(rows: Sequence[Row], kernel: Literal["attention", "decoding", "jacobi_update"]) -> bool:
    """Whether a check of a kernel had to be stopped, or crashed: nothing else runs that kernel."""
    names = (f"{platform} {kernel}: " for platform in ("tpu", "gpu"))
    return any(row.status in ("hang", "stuck", "crash") for name in names for row in find(rows, "correctness", name))


_STEPS: dict[Stage, Any] = {"correctness": _correctness, "timing": _timing, "steps": _planned, "tuning": _tuning}
