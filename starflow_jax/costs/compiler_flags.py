"""Flags of XLA's TPU compiler that are recommended for a chip.

A flag is listed only if a program compiled with it takes less time by the compiler's own cycles and schedule of
collectives than the same program without it; docs/plan.md has both figures. No flag
has been timed on a device. On GPUs none is recommended, since their compiler estimates no time.
"""

from __future__ import annotations

from collections.abc import Mapping

from starflow_jax.core.config.checks import check

# The variable that libtpu reads when it is loaded.
VARIABLE = "LIBTPU_INIT_ARGS"

# Gathers of kernels and sums of gradients run on the SparseCores, beside the products. These flags alone leave the
# products less of the vector memory.
_SPARSE_CORES = tuple(
    f"--xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
    for kind in ("all_gather", "2d_all_gather", "reduce_scatter", "all_reduce")
)
# The vector memory that one operation may use, in KiB: more than by default, for larger blocks of products.
_VECTOR_MEMORY = "--xla_tpu_scoped_vmem_limit_kib=65536"
_RECOMMENDED: dict[str, tuple[str, ...]] = {"v5e": (_VECTOR_MEMORY,), "v6e": (*_SPARSE_CORES, _VECTOR_MEMORY)}

# What the variable TPU_ACCELERATOR_TYPE of a TPU's host begins with, and the names in `costs.chips`.
_TYPES = {"v4": "v4", "v5litepod": "v5e", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "tpu7x": "tpu7x"}


def recommended(chip: str) -> tuple[str, ...]:
    """The flags recommended for a chip, by its name in `costs.chips`; empty if there are none."""
    return _RECOMMENDED.get(chip, ())


def missing(chip: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The recommended flags that an environment does not set, to any value."""
    given = {flag.partition("=")[0] for flag in environment.get(VARIABLE, "").split()}
    return tuple(flag for flag in recommended(chip) if flag.partition("=")[0] not in given)


def completed(chip: str, environment: Mapping[str, str]) -> str:
    """The value of `VARIABLE` with the recommended flags added; what the environment sets is kept."""
    return " ".join([*environment.get(VARIABLE, "").split(), *missing(chip, environment)])


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
    return f"compiler flags recommended for {chip}, and set by --recommended-flags: {VARIABLE}='{' '.join(left)}'"
