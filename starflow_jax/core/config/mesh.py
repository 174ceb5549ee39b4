"""How a run is laid out over devices."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.config.checks import check, check_integer

AXES = ("data", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1, for one axis at most, takes the rest.

    Attributes:
      data: copies of the parameters, each reading its own part of the batch.
      fsdp: parts of the batch, too, with parameters and optimizer state cut into as many pieces.
      tensor: parts of every layer: heads of attention, columns of the MLP.
      sequence: parts of the tokens of every example.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            check_integer(name, size, minimum=-1)
            check(size != 0, f"{name} must be at least 1, or -1 for the rest, got 0")
        rest = [name for name in AXES if getattr(self, name) == -1]
        check(len(rest) < 2, f"one axis of the mesh at most may be -1, got {' and '.join(rest)}")

    def sizes(self, devices: int) -> tuple[int, int, int, int]:
        """The sizes in the order of `AXES` on that many devices.

        Raises:
          ValueError: the axes do not multiply to `devices`.
        """
        given = [getattr(self, name) for name in AXES]
        known = 1
        for size in given:
            known *= size if size > 0 else 1
        shown = ", ".join(f"{name}={size}" for name, size in zip(AXES, given, strict=True))
        check(
            devices % known == 0 if -1 in given else devices == known,
            f"mesh must multiply to the {devices} devices there are, got {shown}",
        )
        data, fsdp, tensor, sequence = (devices // known if size == -1 else size for size in given)
        return data, fsdp, tensor, sequence
