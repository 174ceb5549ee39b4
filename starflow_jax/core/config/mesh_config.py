"""Configuration of the device mesh."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.config.checks import check, check_integer

# From the slowest network to the fastest.
AXES = ("slices", "data", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; at most one axis may be -1, which takes the remaining devices.

    Attributes:
      data: data parallelism: the parameters are replicated, and the batch is sharded.
      fsdp: fully sharded data parallelism: the batch, the parameters and the optimizer state are sharded.
      tensor: tensor parallelism: the attention heads and the columns of the MLP are sharded.
      sequence: sequence parallelism: the tokens of every example are sharded.
      slices: slices of TPUs, or groups of nodes, with a slower network between them: data parallelism. All other axes,
        and with them the shards of parameters, lie inside a slice. It cannot be -1.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            check_integer(name, size, minimum=1 if name == "slices" else -1)
            check(size != 0, f"{name} must be at least 1, or -1 for all other devices, got 0")
        rest = [name for name in AXES if getattr(self, name) == -1]
        check(len(rest) < 2, f"at most one axis of the mesh may be -1, got {' and '.join(rest)}")

    def sizes(self, devices: int) -> tuple[int, int, int, int, int]:
        """The axis sizes, in the order of `AXES`, on this number of devices.

        Raises:
          ValueError: the axes do not multiply to `devices`.
        """
        requested = [getattr(self, name) for name in AXES]
        product = 1
        for size in requested:
            product *= size if size > 0 else 1
        axes_text = ", ".join(f"{name}={size}" for name, size in zip(AXES, requested, strict=True))
        check(
            devices % product == 0 if -1 in requested else devices == product,
            f"mesh must multiply to the {devices} available devices, got {axes_text}",
        )
        slices, data, fsdp, tensor, sequence = (devices // product if size == -1 else size for size in requested)
        return slices, data, fsdp, tensor, sequence
