"""Chooses the implementation of an operation, by one rule for every operation of `starflow_jax.kernels`.

An operation has a reference in plain jnp ("xla": every platform, every call) and may have Pallas kernels for some
platforms ("pallas"), and a routine of the library cuDNN for NVIDIA GPUs ("cudnn"), each for the calls that it supports.
By default cuDNN runs where it supports the call, then a kernel where one does, otherwise the reference; where something
that a platform has does not support the call, one logged sentence gives the reason. `implementation="xla"`, `"pallas"`
or `"cudnn"` forces the choice, and raises an error with the reason where it is impossible.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any, Literal

import jax

from starflow_jax.kernels.cuda_libraries import CudaLibraries, cuda_libraries

Implementation = Literal["xla", "pallas", "cudnn"] | None
# The platforms that have kernels, and the one that has cuDNN.
KERNEL_PLATFORMS = ("tpu", "gpu")
CUDNN_PLATFORM = "gpu"
_IMPLEMENTATIONS = ("xla", "pallas", "cudnn", None)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a program is compiled for; they may belong to a topology that is not attached.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: `jax.Device.device_kind` ("TPU v5 lite", "NVIDIA H200"); "" where it is unknown.
      capability: compute capability of a GPU, such as "9.0"; "" elsewhere.
      libraries: those that programs for an NVIDIA GPU are compiled with.
    """

    platform: str
    kind: str = ""
    capability: str = ""
    libraries: CudaLibraries = dataclasses.field(default_factory=CudaLibraries)


@dataclasses.dataclass(frozen=True)
class Support:
    """Whether an implementation supports a call; true where it does.

    Attributes:
      reason: why it does not, a clause that follows the word "it" ("needs bfloat16, and this is float32"); else None.
    """

    reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is None


# The GPU kernels are compiled for Hopper and tested in interpreters, but no GPU has run them: they run on request only.
UNTIMED_ON_GPUS = Support("has not been timed on a GPU yet; implementation='pallas' selects it")


def device_target(device: jax.Device | None = None) -> Target:
    """The target of programs for `device`; None: the device that programs without shardings run on."""
    if device is None:
        config: Any = jax.config  # whose options mypy does not know
        default = config.jax_default_device
        device = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
    libraries = cuda_libraries() if platform == "gpu" else CudaLibraries()
    return Target(platform, str(device.device_kind), str(getattr(device, "compute_capability", "")), libraries)


def choose(
    operation: str,
    implementation: Implementation,
    target: Target,
    support: Support,
    cudnn_support: Support | None = None,
) -> Literal["xla", "pallas", "cudnn"]:
    """The implementation that runs.

    Args:
      operation: its name, for messages.
      implementation: the requested implementation; None applies the rule.
      target: the devices that the program is compiled for.
      support: whether the kernel of the target's platform supports the call; not used where the platform has none.
      cudnn_support: whether cuDNN does, used for GPUs; None for an operation that cuDNN does not have, for which
        "cudnn" is the same as None.

    Raises:
      ValueError: an unknown `implementation`, "pallas" where no kernel supports the call, or "cudnn" where cuDNN does
        not.
    """
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"implementation of {operation} must be 'xla', 'pallas', 'cudnn' or None, got {implementation!r}"
        )
    if implementation == "xla":
        return "xla"
    if cudnn_support is None:
        implementation = None if implementation == "cudnn" else implementation
    elif implementation != "pallas" and _runs_cudnn(operation, implementation, target, cudnn_support):
        return "cudnn"
    if target.platform not in KERNEL_PLATFORMS:
        if implementation == "pallas":
            platforms = " and ".join(sorted(KERNEL_PLATFORMS))
            raise ValueError(
                f"implementation='pallas' of {operation} has kernels for {platforms}, not for {target.platform}; "
                "None or 'xla' runs the reference"
            )
        return "xla"
    if support:
        return "pallas"
    sentence = f"The {target.platform} kernel of {operation} is not used: it {support.reason}"
    if implementation == "pallas":
        raise ValueError(f"implementation='pallas' was requested. {sentence}")
    _log_once(f"{sentence}; XLA computes it.")
    return "xla"


def _runs_cudnn(operation: str, implementation: Implementation, target: Target, support: Support) -> bool:
    if target.platform != CUDNN_PLATFORM:
        if implementation == "cudnn":
            raise ValueError(
                f"implementation='cudnn' of {operation} is for {CUDNN_PLATFORM}, not for {target.platform}; None or "
                "'xla' runs the reference"
            )
        return False
    if support:
        return True
    sentence = f"cuDNN does not compute a call of {operation}: it {support.reason}"
    if implementation == "cudnn":
        raise ValueError(f"implementation='cudnn' was requested. {sentence}")
    _log_once(f"{sentence}.")
    return False


@functools.cache
def _log_once(sentence: str) -> None:
    # Logged once per process, because every layer and every trace calls this function.
    _LOG.info(sentence)
