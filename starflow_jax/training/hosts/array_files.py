"""The files of arrays in checkpoints of hosts that share no disk: one for each shard, named by its place in the array.

Every host writes the shards of its own devices with Orbax, which lays out an array as zarr (version 3) where it does
not merge the files of all processes into one database: `params/blocks.0.kernel/zarr.json` has the shapes of the array
and of a shard, and `params/blocks.0.kernel/c/0/3` is a shard. The folders of all hosts together are a complete
checkpoint, which one host reads like any other. A shard that several hosts hold has the same name and values on all.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from starflow_jax.core.regular_files import parse_json, read_text

DESCRIPTION = "zarr.json"
_STEP = re.compile(r"checkpoints/(0|[1-9]\d*)/")
_SHARD = re.compile(r"(checkpoints/(?:0|[1-9]\d*)/[^/]+/[^/]+)/c(?:/\d+)*")
_MOST_AXES, _MOST_SHARDS = 32, 2**20  # of one array


def step_of(name: str) -> int | None:
    """The step of the checkpoint that a file of a run belongs to; None for one of no checkpoint."""
    match = _STEP.match(name)
    return None if match is None else int(match[1])


def array_of(name: str, names: Collection[str]) -> str | None:
    """The folder of the array that a file of a run, one of `names`, is a shard of; None for any other file."""
    match = _SHARD.fullmatch(name)
    return match[1] if match is not None and f"{match[1]}/{DESCRIPTION}" in names else None


def counted_shards(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """The number of shards that each array of a checkpoint consists of.

    Args:
      folder: of the run; names: of the files of one checkpoint in it.

    Returns:
      By the name of the array's folder.

    Raises:
      ValueError: a description of an array is none.
    """
    found = {}
    for name in names:
        if name.endswith(f"/{DESCRIPTION}"):
            shape, shard = _shapes(folder / name)
            found[name.removesuffix(f"/{DESCRIPTION}")] = math.prod(map(_count, shape, shard))
    return found


def own_shards(step: int, parts: Mapping[str, Any]) -> list[str]:
    """The files of those shards that this process publishes, since it holds their first replica.

    Args:
      parts: trees of `jax.Array`s by the name of their part.
    """
    names = set()
    for folder, array in _arrays(step, parts):
        size = array.sharding.shard_shape(array.shape)
        if not array.size:
            continue  # has no shards
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                first = [place[0] for place in _places(shard.index, array.shape, size)]
                names.add(f"{folder}/{_file(first)}")
    return sorted(names)


def needed_shards(folder: Path, step: int, parts: Mapping[str, Any]) -> list[str]:
    """The files of all shards that this process reads.

    Args:
      folder: of the run, with the descriptions of the arrays; an array without one is left out.
      parts: trees of `jax.ShapeDtypeStruct`s by the name of their part; one without a sharding is read whole.

    Raises:
      ValueError: a description of an array is none.
    """
    names: set[str] = set()
    for name, array in _arrays(step, parts):
        description = folder / name / DESCRIPTION
        if not description.is_file():
            continue
        shape, size = _shapes(description)
        if shape != tuple(array.shape):
            continue  # of another model: reading it says so
        whole = tuple(slice(None) for _ in shape)
        sharding = array.sharding
        indices = [whole] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
        for index in indices:
            places = _places(index, shape, size)
            if math.prod(map(len, places)) > _MOST_SHARDS:
                raise ValueError(f"{description} divides an array into more than {_MOST_SHARDS} shards")
            names |= {f"{name}/{_file(place)}" for place in itertools.product(*places)}
    return sorted(names)


def _arrays(step: int, parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arrays of all parts with the names of their folders."""
    for part, tree in parts.items():
        for path, array in ocp.tree.to_flat_dict(tree, sep=".").items():
            yield f"checkpoints/{step}/{part}/{path}", array


def _places(index: Sequence[slice], shape: Sequence[int], size: Sequence[int]) -> list[range]:
    """The places of shards along every axis that an interval of an array overlaps."""
    places = []
    for part, length, one in zip(index, shape, size, strict=True):
        start, stop, _ = part.indices(length)
        places.append(range(start // one, _count(stop, one)) if one else range(0))
    return places


def _count(length: int, size: int) -> int:
    return -(-length // size) if size else 0


def _file(place: Sequence[int]) -> str:
    return "/".join(("c", *map(str, place)))


def _shapes(description: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of an array and that of its shards."""
    try:
        values = parse_json(read_text(description))
        shape, shard = tuple(values["shape"]), tuple(values["chunk_grid"]["configuration"]["chunk_shape"])
        sizes = (*shape, *shard)
        if len(shape) != len(shard) or len(shape) > _MOST_AXES or not all(type(size) is int for size in sizes):
            raise ValueError("shapes of another kind")
        if min(sizes, default=0) < 0:
            raise ValueError("a negative size")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{description} does not describe an array") from error
    return shape, shard
