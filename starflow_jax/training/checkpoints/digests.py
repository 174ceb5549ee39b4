"""Checksums of arrays; those of large arrays are computed on the devices that hold them.

The array format of a checkpoint detects truncated files but no flipped bits. A checksum of the values detects both. It
is a sum of integers and thus independent of the order, the layout and the number of devices.
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

_INDEX_FACTOR = np.uint32(0x9E3779B9)
_FACTORS = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_BLOCK = 2**15  # number of values summed at a time on the host
# Up to so many values an array is summed on the host, in milliseconds: each shape would be another program to compile.
_ON_HOST = 2**18


def digest(tree: Any) -> str:
    """Checksum of a tree of arrays and of their names, 8 hexadecimal digits. A collective of all processes.

    Args:
      tree: arrays of at most 32 bits per value, with any sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    pieces = jax.device_get([_pieces(leaf) for _, leaf in leaves])
    sums = np.asarray([sum(map(int, shards)) % 2**32 for shards in pieces], np.uint32)
    if jax.process_count() > 1:
        # One collective for all arrays: each process has summed its own shards.
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(axis=0, dtype=np.uint32)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return digest_from_sums(dict(zip(names, map(int, sums), strict=True)))


def keys_by_path(tree: Any) -> dict[str, str]:
    """The `keystr` of every leaf of nested dictionaries by its dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(part.key) for part in path): jax.tree_util.keystr(path) for path, _ in leaves}


def digest_from_sums(sums: Mapping[str, int]) -> str:
    """The checksum of a tree from the sums of its arrays by `keystr`."""
    return json_digest(sorted((name, value % 2**32) for name, value in sums.items()))


def partial_sum(values: np.ndarray, start: int) -> int:
    """The contribution of consecutive values of an array to its sum, computed on the host without a copy.

    Args:
      values: of any shape, row-major, at most 32 bits each; start: number of values of the array before them.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    words = flat.view(f"uint{8 * flat.dtype.itemsize}")
    indices = np.arange(_BLOCK, dtype=np.uint32) * _INDEX_FACTOR
    total = 0
    for first in range(0, words.size, _BLOCK):  # a block fits the processor's cache
        part = words[first : first + _BLOCK]
        mixed = indices[: part.size] + np.uint32((start + first) * int(_INDEX_FACTOR) % 2**32)
        mixed ^= part
        mixed ^= mixed >> 16
        mixed *= _FACTORS[0]
        mixed ^= mixed >> 13
        mixed *= _FACTORS[1]
        mixed ^= mixed >> 16
        total += int(mixed.sum(dtype=np.uint64))
    return total


def json_digest(value: Any) -> str:
    """Checksum of a JSON value, 8 hexadecimal digits, independent of the order of keys."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _pieces(array: Any) -> list[jax.Array | int]:
    """The sums of the shards of an array on this process's devices, without replicas."""
    # Unlike jnp.asarray, this compiles no program for every shape.
    array = array if isinstance(array, jax.Array) else jax.device_put(array)
    if array.size <= _ON_HOST and array.is_fully_addressable and len(array.sharding.device_set) == 1:
        return [partial_sum(np.asarray(array), 0)]
    strides = np.cumprod([1, *array.shape[:0:-1]], dtype=np.uint32)[::-1][: array.ndim]
    sums: list[jax.Array | int] = []
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            starts = np.asarray([part.start or 0 for part in shard.index], np.uint32)
            sums.append(_sum(shard.data, starts, strides))
    return sums


@jax.jit
def _sum(piece: jax.Array, starts: jax.Array, strides: jax.Array) -> jax.Array:
    """uint32 []: the sum over all values of their bits mixed with their index in the whole array.

    Args:
      piece: any shape; starts: uint32 [axes], its first indices in the whole; strides: uint32 [axes], of the whole.
    """
    index = jnp.zeros(piece.shape, jnp.uint32)
    for axis in range(piece.ndim):
        index += (jax.lax.broadcasted_iota(jnp.uint32, piece.shape, axis) + starts[axis]) * strides[axis]
    bits = piece.astype(jnp.uint8) if piece.dtype == jnp.bool_ else piece
    words = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    # A bijection of the word, so that any change of one value is detected (the finaliser of MurmurHash3).
    mixed = words ^ (index * _INDEX_FACTOR)
    mixed = (mixed ^ (mixed >> 16)) * _FACTORS[0]
    mixed = (mixed ^ (mixed >> 13)) * _FACTORS[1]
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
