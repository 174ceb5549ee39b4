"""Which axis of the mesh cuts which axis of a parameter: one table, read by the paths of parameters.

Optimizer moments and running means are trees of the same paths, so the same table places them.
"""

from __future__ import annotations

import re

Spec = tuple[str | None, ...]

# The end of a path, and its axes without the leading one of stacked layers. Everything else is small and whole
# everywhere: norms, the biases of outputs, start tokens, tables of
# positions and classes. "tensor" cuts heads and the channels of the MLP, so that a
# branch needs one sum over its parts; "fsdp" cuts the other axis, and is gathered where the kernel is used.
RULES: tuple[tuple[str, Spec], ...] = (
    (r"qkv/kernel", ("fsdp", "tensor", None, None)),
    (r"qkv/bias", ("tensor", None, None)),
    (r"(up|gate)/kernel", ("fsdp", "tensor")),
    (r"(up|gate)/bias", ("tensor",)),
    (r"(proj|down)/kernel", ("tensor", "fsdp")),
    (r"proj_in/kernel", (None, "fsdp")),
    (r"(proj_txt|proj_out)/kernel", ("fsdp", None)),
    (r"embedding", (None, "fsdp")),  # of the tokens of a frozen text encoder: rows are looked up, columns parted
    # Of frozen autoencoders: a linear one, the channels that a convolution puts out, attention between positions.
    (r"basis", ("fsdp", None)),
    (r"\w*conv\w*/kernel", ("fsdp",)),
    (r"to_(q|k|v|out)/kernel", (None, "fsdp")),
)


def spec_of(path: str, ndim: int) -> Spec:
    """The axes of the mesh that cut the parameter at `path` ("blocks/0/proj_in/kernel"), one entry an axis of it."""
    for pattern, spec in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            return (None,) * (ndim - len(spec)) + spec
    return (None,) * ndim
