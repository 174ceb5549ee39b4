"""Checksums of arrays, computed where the arrays are.

The array format of a checkpoint notices a file that is cut short and not a bit that changed inside one. A checksum
of the values does, on any layout of any number of devices: it is a sum of integers, whose order does not matter.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_OF_PLACE = np.uint32(0x9E3779B9)
_FACTORS = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_BLOCK = 2**15  # values that are summed at a time on the host


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
    return digest_of_sums(dict(zip(names, map(int, sums), strict=True)))


def digest_of_sums(sums: Mapping[str, int]) -> str:
    """The checksum of a tree from the sums of its arrays, by their `keystr`."""
    return json_digest(sorted((name, value % 2**32) for name, value in sums.items()))


def sum_of_run(values: np.ndarray, start: int) -> int:
    """What a run of neighbouring values of an array adds to the array's sum, computed on the host, without a copy.

    Args:
      values: of any shape, row by row, at most 32 bits each; start: how many values of the array come before them.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    words = flat.view(f"uint{8 * flat.dtype.itemsize}")
    places = np.arange(_BLOCK, dtype=np.uint32) * _OF_PLACE
    total = 0
    for first in range(0, words.size, _BLOCK):  # as much as the processor's cache holds
        part = words[first : first + _BLOCK]
        mixed = places[: part.size] + np.uint32((start + first) * int(_OF_PLACE) % 2**32)
        mixed ^= part
        mixed ^= mixed >> 16
        mixed *= _FACTORS[0]
        mixed ^= mixed >> 13
        mixed *= _FACTORS[1]
        mixed ^= mixed >> 16
        total += int(mixed.sum(dtype=np.uint64))
    return total


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
    place = jnp.zeros(piece.shape, jnp.uint32)
    for axis in range(piece.ndim):
        place += (jax.lax.broadcasted_iota(jnp.uint32, piece.shape, axis) + starts[axis]) * strides[axis]
    bits = piece.astype(jnp.uint8) if piece.dtype == jnp.bool_ else piece
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    # One-to-one in the word, so that no change of one value goes unnoticed (the finaliser of MurmurHash3).
    mixed = words ^ (place * _OF_PLACE)
    mixed = (mixed ^ (mixed >> 16)) * _FACTORS[0]
    mixed = (mixed ^ (mixed >> 13)) * _FACTORS[1]
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
