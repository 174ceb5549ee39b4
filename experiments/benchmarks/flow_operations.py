"""The operations of a flow that the benchmarks time, by name, and the configurations and sizes that they take."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "bench"
PARALLEL = ("forward", "forward+backward", "denoiser")
# The inverses that are timed unless others are asked for; `JacobiSetting.parse` reads their names.
SEQUENTIAL = "sequential"
INVERSES = (SEQUENTIAL, "jacobi 16", "jacobi 32")
GUIDED = " guided"
# The inverse of the solver that a calibration chooses.
AUTO = "auto"
# What is timed beside an operation: the product of two square matrices of this size, and under these prefixes the bare
# products and the reading of an operation.
PRODUCT, SQUARE, FLOOR, READ = "product", 1024, "floor: ", "read: "

# The constructor arguments of a flow that takes seconds.
TINY: dict[str, Any] = {
    "in_channels": 2, "img_size": 4, "patch_size": 1, "channels": 40, "num_blocks": 2, "layers_per_block": [1, 2],
    "head_dim": 20, "rope": 1, "sos": 1, "txt_size": 3, "txt_dim": 6, "cond_top_only": 1, "use_softplus": 1,
    "use_final_norm": 1, "soft_clip": 4, "seq_order": "L2R", "learnable_self_denoiser": 1, "conditional_denoiser": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Batch rows, text tokens, frames of a video, and the weight of guidance."""

    batch: int = 4
    text: int = 32
    frames: int = 5
    guidance: float = 2.0


TINY_SIZES = Sizes(batch=2, text=3)


def original_arguments(folder: Path) -> dict[str, Any]:
    """The constructor arguments in a folder's config.json, with the learned denoiser where the flow reads text.

    Raises:
      ValueError: there is no such file, or it holds no JSON object.
    """
    path = folder / "config.json"
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} must contain a JSON object of constructor arguments")
    if arguments.get("txt_size"):
        arguments |= {"learnable_self_denoiser": 1, "conditional_denoiser": 1}
    return arguments


def operation_names(*, denoiser: bool, text: bool) -> list[str]:
    """The names of the operations of a flow, with or without a denoiser and text."""
    parallel = [name for name in PARALLEL if name != "denoiser" or denoiser]
    return [*parallel, *(solver + kind for solver in INVERSES for kind in (("", GUIDED) if text else ("",)))]


def is_guided(name: str) -> bool:
    """Whether an operation is a guided inverse."""
    return name.endswith(GUIDED)


@dataclasses.dataclass(frozen=True)
class JacobiSetting:
    """Chunk length of Jacobi iteration up to the end of the first frame, and its tolerance (None: the default)."""

    block: int
    tolerance: float | None = None

    @property
    def name(self) -> str:
        """The name of the inverse, such as "jacobi 32" or "jacobi 32 at 1e-05"."""
        return f"jacobi {self.block}" + ("" if self.tolerance is None else f" at {self.tolerance:g}")

    @classmethod
    def parse(cls, name: str) -> JacobiSetting | None:
        """The setting that an inverse is named after; None for the sequential one.

        Raises:
          ValueError: the name is that of no inverse.
        """
        plain = name.removesuffix(GUIDED)
        if plain == SEQUENTIAL:
            return None
        match = re.fullmatch(r"jacobi (\d+)(?: at (\S+))?", plain)
        if match is None:
            raise ValueError(f"an inverse is named sequential, jacobi N or jacobi N at TOLERANCE, got {name!r}")
        return cls(int(match[1]), None if match[2] is None else float(match[2]))


def bound(read_seconds: float, multiply_adds: int, product_seconds: float) -> str:
    """Whether reading takes longer ("bandwidth") than the multiply-adds at the rate of the square product."""
    return "bandwidth" if read_seconds > multiply_adds * product_seconds / SQUARE**3 else "arithmetic"
