"""Flags of XLA's compilers that are recommended for a chip.

A flag of TPUs is listed only if a program compiled with it takes less time by the compiler's own cycles and schedule of
collectives than the same program without it; those of GPUs, whose compiler estimates no time, if more bytes of
collectives overlap with products. docs/plan.md has both figures. No flag has been timed on a device.
"""

from __future__ import annotations

from collections.abc import Mapping

from starflow_jax.core.config.checks import check

# The variable that libtpu reads when it is loaded, and that of XLA for GPUs.
VARIABLE, GPU_VARIABLE = "LIBTPU_INIT_ARGS", "XLA_FLAGS"

# Gathers of kernels and sums of gradients run on the SparseCores, beside the products. These flags alone leave the
# products less of the vector memory.
_SPARSE_CORES = tuple(
    f"--xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
    for kind in ("all_gather", "2d_all_gather", "reduce_scatter", "all_reduce")
)
# The vector memory that one operation may use, in KiB: more than by default, for larger blocks of products.
_VECTOR_MEMORY = "--xla_tpu_scoped_vmem_limit_kib=65536"
# The sums of a layer's gradients are moved into the next turn of the loop over layers, and run beside its products.
_PIPELINED = tuple(f"--xla_gpu_enable_pipelined_{kind}=true" for kind in ("reduce_scatter", "all_reduce"))
_RECOMMENDED: dict[str, tuple[str, ...]] = {
    "v5e": (_VECTOR_MEMORY,),
    "v6e": (*_SPARSE_CORES, _VECTOR_MEMORY),
    "h100": _PIPELINED,
}

# What the variable TPU_ACCELERATOR_TYPE of a TPU's host begins with, and the names in `costs.chips`.
_TYPES = {"v4": "v4", "v5litepod": "v5e", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "tpu7x": "tpu7x"}


def recommended(chip: str) -> tuple[str, ...]:
    """The flags recommended for a chip, by its name in `costs.chips`; empty if there are none."""
    return _RECOMMENDED.get(chip, ())


def variable(chip: str) -> str:
    """The name of the variable that the compiler for a chip reads."""
    return VARIABLE if chip in _TYPES.values() else GPU_VARIABLE


def missing(chip: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The recommended flags that an environment does not set, to any value."""
    given = {flag.partition("=")[0] for flag in environment.get(variable(chip), "").split()}
    return tuple(flag for flag in recommended(chip) if flag.partition("=")[0] not in given)


def completed(chip: str, environment: Mapping[str, str]) -> str:
    """The value of the chip's variable with the recommended flags added; what the environment sets is kept."""
    return " ".join([*environment.get(variable(chip), "").split(), *missing(chip, environment)])


def host_chip(environment: Mapping[str, str]) -> str:
    """The name of the chip of this host, from TPU_ACCELERATOR_TYPE, before JAX has initialised any device.

    Raises:
      ValueError: the variable is not set, or names no known chip.
    """
    kind = environment.get("TPU_ACCELERATOR_TYPE", "")
    chip = _TYPES.get(kind.partition("-")[0].lower())
    check(
        chip is not None,
        f"TPU_ACCELERATOR_TYPE must begin with one of {', '.join(_TYPES)}, as in v6e-64, got {kind!r}",
    )
    assert chip is not None
    return chip


def sentence(chip: str, environment: Mapping[str, str]) -> str:
    """What is recommended for a chip, and whether it is set."""
    flags = recommended(chip)
    if not flags:
        return f"compiler flags: none is recommended for {chip}"
    left = missing(chip, environment)
    if not left:
        return f"compiler flags: those recommended for {chip} are set"
    name = variable(chip)
    how = ", and set by --recommended-flags" if name == VARIABLE else ""  # a training on GPUs starts with its variables
    return f"compiler flags recommended for {chip}{how}: {name}='{' '.join(left)}'"
