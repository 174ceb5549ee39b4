"""The versions of the CUDA libraries that programs are compiled with: from what is installed, without loading any.

JAX's CUDA plugin knows the versions of the libraries that it loads; JAX imports it where it is installed, and this file
only looks at what has been imported. The plugin does not know its compiler of PTX, ptxas, which is a package or a
program of a CUDA installation; it is looked for where JAX looks for it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.regular_files import read_json

# JAX takes the first that is installed.
_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_COMPILERS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu12")
_INSTALLATION = "/usr/local/cuda"
# The build of ptxas in CUDA 12.9.1; that of 12.9.0 is 41. No other patch release is told apart.
_BUILD_OF_12_9_1 = 86


@dataclasses.dataclass(frozen=True)
class CudaLibraries:
    """Versions; 0 where there is no such library, or where its version is not known.

    Attributes:
      toolchain: of the CUDA release that ptxas is of, 1000 major + 10 minor + patch: 12091 is CUDA 12.9.1.
      cudnn: 10000 major + 100 minor + patch: 91002 is cuDNN 9.10.2.
    """

    toolchain: int = 0
    cudnn: int = 0


@functools.cache
def cuda_libraries() -> CudaLibraries:
    """The libraries of this process; both versions are 0 where JAX has no CUDA plugin."""
    plugin = next((sys.modules[f"{name}._versions"] for name in _PLUGINS if f"{name}._versions" in sys.modules), None)
    return CudaLibraries() if plugin is None else find_libraries(plugin)


def find_libraries(
    plugin: Any,
    *,
    installed: Callable[[str], str] = importlib.metadata.version,
    environment: Mapping[str, str] = os.environ,
) -> CudaLibraries:
    """The libraries that a plugin compiles with.

    Args:
      plugin: has the functions of JAX's `_versions` module of its CUDA plugin, each of which may fail.
      installed: gives the version of an installed package, or raises `importlib.metadata.PackageNotFoundError`.
      environment: whose `CUDA_ROOT`, where it is set, is the CUDA installation that JAX uses.
    """
    root = environment.get("CUDA_ROOT")
    compiler = "" if root else _package(installed)
    compiler = compiler or _compiler_of(Path(root or _INSTALLATION))
    toolchain = release(compiler) or _ask(plugin, "cuda_runtime_get_version")
    return CudaLibraries(toolchain, _ask(plugin, "cudnn_get_version"))


def release(compiler: str) -> int:
    """The CUDA release (see `CudaLibraries`) of a version of ptxas such as "12.9.86"; 0 for what is no version."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,6}))?", compiler)
    if not found:
        return 0
    major, minor, build = (int(part or 0) for part in found.groups())
    patch = 1 if (major, minor) == (12, 9) and build >= _BUILD_OF_12_9_1 else 0
    return 1000 * major + 10 * minor + patch


def _package(installed: Callable[[str], str]) -> str:
    for name in _COMPILERS:
        try:
            return installed(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _compiler_of(root: Path) -> str:
    """The version of ptxas of a CUDA installation, from its file of versions; "" where that cannot be read."""
    try:
        return str(read_json(root / "version.json", max_bytes=2**20)["cuda_nvcc"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _ask(plugin: Any, name: str) -> int:
    """A version from the plugin; 0 where it has none or cannot load the library."""
    try:
        return int(getattr(plugin, name)())
    except Exception:  # extensions raise errors of their own where a library is missing
        return 0
