"""Checksums of arrays, computed where the arrays are.

The array format of a checkpoint notices a file that is cut short and not a bit that changed inside one. A checksum
of the values does, on any layout of any number of devices: it is a sum of integers, whose order does not matter.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def digest(tree: Any) -> str:
    """Checksum of a tree of arrays and of their names, 8 hexadecimal digits; all processes ask together.

    Args:
      tree: arrays of at most 32 bits a value; on whatever devices, in whatever pieces.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    pieces = jax.device_get([_pieces(leaf) for _, leaf in leaves])
    sums = np.asarray([sum(map(int, own)) % 2**32 for own in pieces], np.uint32)
    if jax.process_count() > 1:
        # One question for all arrays: each process has summed its own pieces.
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(axis=0, dtype=np.uint32)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return json_digest(sorted((name, int(value)) for name, value in zip(names, sums, strict=True)))


def json_digest(value: Any) -> str:
    """Checksum of a JSON value, 8 hexadecimal digits; the order of keys does not count."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _pieces(array: Any) -> list[jax.Array]:
    """The sums of those pieces of an array that lie on this process's devices, copies left out."""
    array = array if isinstance(array, jax.Array) else jnp.asarray(array)
    strides = np.cumprod([1, *array.shape[:0:-1]], dtype=np.uint32)[::-1][: array.ndim]
    sums = []
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            starts = np.asarray([part.start or 0 for part in shard.index], np.uint32)
            sums.append(_sum(shard.data, starts, strides))
    return sums


@jax.jit
def _sum(piece: jax.Array, starts: jax.Array, strides: jax.Array) -> jax.Array:
    """uint32 []: the sum of every value's bits, mixed with the value's place in the whole array.

    Args:
      piece: any shape; starts: uint32 [axes], where it begins in the whole; strides: uint32 [axes], of the whole.
    """
    bits = piece.astype(jnp.uint8) if piece.dtype == jnp.bool_ else piece
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(piece.shape, jnp.uint32)
    for axis in range(piece.ndim):
        place += (jax.lax.broadcasted_iota(jnp.uint32, piece.shape, axis) + starts[axis]) * strides[axis]
    # One-to-one in the word, so that no change of one value goes unnoticed (the finaliser of MurmurHash3).
    mixed = words ^ (place * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
