"""Checksums of arrays, computed where the arrays are.

The array format of a checkpoint notices a file that is cut short and not a bit that changed inside one. A checksum
of the values does, on any layout of any number of devices: it is a sum of integers, whose order does not matter.
"""

from __future__ import annotations

import functools
import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.parallel.layout import Layout, gathered, layout_of


def digest(tree: Any) -> str:
    """Checksum of a tree of arrays and of their names, 8 hexadecimal digits.

    Args:
      tree: arrays of at most 32 bits a value; on whatever devices, in whatever pieces.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One program for all: every program of several processes waits for them anew.
    sums = np.asarray(_sums(layout_of(tree), [leaf for _, leaf in leaves])) if leaves else ()
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return json_digest(sorted((name, int(value)) for name, value in zip(names, sums, strict=True)))


def json_digest(value: Any) -> str:
    """Checksum of a JSON value, 8 hexadecimal digits; the order of keys does not count."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


@functools.partial(jax.jit, static_argnums=0)
def _sums(layout: Layout | None, arrays: list[jax.Array]) -> jax.Array:
    """uint32 [n]: the sum of each array."""
    return gathered(layout, jnp.stack([_sum(array) for array in arrays]))


def _sum(array: jax.Array) -> jax.Array:
    """uint32 []: the sum of every value's bits, mixed with the value's place."""
    bits = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    # The place by axes, not along the flattened array, which would have to be gathered from its devices.
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    # One-to-one in the word, so that no change of one value goes unnoticed (the finaliser of MurmurHash3).
    mixed = words ^ (place * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
