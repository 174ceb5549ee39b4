"""The mesh axes that parameters are sharded over: one table of patterns of parameter paths.

Optimizer moments and moving averages have the same paths, so that the same table applies to them.
"""

from __future__ import annotations

import re

Spec = tuple[str | None, ...]

# The end of a path, and the mesh axes of its array axes without the leading one of stacked layers. All other parameters
# are small and replicated: norms, biases of outputs, start tokens, tables of positions and classes. "tensor" shards
# heads and MLP channels, so that each branch needs one sum over devices; "fsdp" shards the other axis, which is
# gathered where the kernel is used.
RULES: tuple[tuple[str, Spec], ...] = (
    (r"qkv/kernel", ("fsdp", "tensor", None, None)),
    (r"qkv/bias", ("tensor", None, None)),
    (r"(up|gate)/kernel", ("fsdp", "tensor")),
    (r"(up|gate)/bias", ("tensor",)),
    (r"(proj|down)/kernel", ("tensor", "fsdp")),
    (r"modulation/kernel", ("fsdp", None, None)),
    (r"proj_in/kernel", (None, "fsdp")),
    (r"(proj_txt|proj_out)/kernel", ("fsdp", None)),
    (r"embedding", (None, "fsdp")),  # of a frozen text encoder: rows are looked up, columns sharded
    # Frozen autoencoders: the linear one, output channels of convolutions, attention between positions.
    (r"basis", ("fsdp", None)),
    (r"\w*conv\w*/kernel", ("fsdp",)),
    (r"to_(q|k|v|out)/kernel", (None, "fsdp")),
)


def partition_spec(path: str, ndim: int) -> Spec:
    """The mesh axis of each axis of the parameter at `path` ("blocks/0/proj_in/kernel").

    Factored moments have the path of a parameter but fewer axes; they are small and replicated.
    """
    for pattern, spec in RULES:
        if len(spec) <= ndim and re.search(rf"(^|/){pattern}$", path):
            return (None,) * (ndim - len(spec)) + spec
    return (None,) * ndim
