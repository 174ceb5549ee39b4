"""Which implementation of an operation runs: the one rule, for every operation of `starflow_jax.kernels`.

An operation has a specification in plain jnp ("xla": every platform, every case) and may have Pallas kernels for some
platforms, each for the cases that it covers. Unasked, a kernel runs wherever there is one that covers the case, else
the specification; where a platform has a kernel that does not cover the case, one logged sentence says why it is not
used. `implementation="xla"` or `"pallas"` insists, and what cannot be is an error that gives the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any, Literal

import jax

Implementation = Literal["xla", "pallas"] | None
# Where there are kernels at all.
KERNEL_PLATFORMS = ("tpu", "gpu")
_NAMES = ("xla", "pallas", None)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a program is for; they may be those of a topology that is not there.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: as the maker calls the device ("TPU v5 lite", "NVIDIA H200"); "" where nothing is known.
      capability: of a GPU, as "9.0"; "" elsewhere.
    """

    platform: str
    kind: str = ""
    capability: str = ""


def target_of(device: jax.Device | None = None) -> Target:
    """The target of programs for `device`; None: the device that programs without shardings run on."""
    if device is None:
        config: Any = jax.config  # whose options mypy does not know
        default = config.jax_default_device
        device = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
    return Target(platform, str(device.device_kind), str(getattr(device, "compute_capability", "")))


def choose(
    operation: str, implementation: Implementation, target: Target, refusals: Mapping[str, str | None]
) -> Literal["xla", "pallas"]:
    """What runs.

    Args:
      operation: its name, for messages.
      implementation: what was asked for; None leaves it to the rule.
      target: what the program is for.
      refusals: of every platform that has a kernel of this operation, why the kernel does not cover the case ("needs
        ...", a clause that follows the word "it"); None where it does.

    Raises:
      ValueError: an unknown `implementation`, or "pallas" where no kernel covers the case.
    """
    if implementation not in _NAMES:
        raise ValueError(f"implementation of {operation} must be 'xla', 'pallas' or None, got {implementation!r}")
    if implementation == "xla":
        return "xla"
    if target.platform not in refusals:
        if implementation == "pallas":
            there = " and ".join(sorted(refusals)) or "no platform"
            raise ValueError(
                f"implementation='pallas' of {operation} has kernels for {there}, not for {target.platform}; "
                "None or 'xla' runs the specification"
            )
        return "xla"
    reason = refusals[target.platform]
    if reason is None:
        return "pallas"
    sentence = f"The {target.platform} kernel of {operation} is not used: it {reason}"
    if implementation == "pallas":
        raise ValueError(f"implementation='pallas' was asked for. {sentence}")
    _say(f"{sentence}; XLA computes it.")
    return "xla"


@functools.cache
def _say(sentence: str) -> None:
    # Once a process: layers and retraces ask again and again.
    _LOG.info(sentence)
