"""Writes what JAX sees of this machine: the device, and the versions of what runs on it.

    python experiments/benchmarks/on_device/probe.py --json device.json

It is a process of its own, because a process that has seen a TPU keeps it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.figures import write_json
from starflow_jax.kernels.attention import Causal
from starflow_jax.kernels.attention.api import chosen
from starflow_jax.kernels.kernel_choice import device_target

_PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12", "tokamax", "torch",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of the installed packages that matter for speed and correctness."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def torch_on_a_gpu() -> bool:
    """Whether PyTorch is installed and sees a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, required=True, help="where it is written")
    options = parser.parse_args(arguments)
    target = device_target()
    training: Any = jax.ShapeDtypeStruct((8, 48, 1152, 64), "bfloat16")
    write_json(
        options.json,
        {
            "platform": target.platform,
            "kind": target.kind,
            "capability": target.capability,
            "attention": chosen(training, training, training, visibility=Causal(), target=target),
            "count": len(jax.devices()),
            "versions": versions(),
            "torch": torch_on_a_gpu(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
