"""Shardings over a mesh of devices: named ones for activations, a table of rules for parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from starflow_jax.core.config.mesh_config import AXES
from starflow_jax.sharding.rules import Spec, partition_spec

# The mesh axes that an array axis is sharded over: one, several or none.
Cut = str | tuple[str, ...] | None

BATCH = ("slices", "data", "fsdp")

ACTIVATIONS: dict[str, tuple[Cut, ...]] = {
    # hidden states [B, n, D]: channels are not sharded, so that norms need no communication
    "hidden": (BATCH, "sequence", None),
    # inside the MLP, and the concatenated heads: [B, n, channels]
    "channels": (BATCH, "sequence", "tensor"),
    # the packed projection before it is split into q, k, v: [B, n, k, group + 2, d]
    "packed": (BATCH, "sequence", "tensor", None, None),
    # q, k, v [B, heads, n, d]: tokens are gathered and heads sharded (DeepSpeed-Ulysses, arXiv 2309.14509)
    "heads": (BATCH, ("tensor", "sequence"), None, None),
    # the same two where the slots of a cache are sharded: every device has all tokens of a chunk
    "packed, gathered": (BATCH, None, "tensor", None, None),
    "heads, gathered": (BATCH, "tensor", None, None),
    # data, conditions and weights of samples: [B, ...]
    "batch": (BATCH,),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with the axes of `core.config.mesh.AXES`; static under `jit`.

    An array axis that is not divisible by the size of its mesh axes is replicated: a single token of decoding, or a
    batch of one, is computed by all devices.
    """

    mesh: jax.sharding.Mesh

    @property
    def platform(self) -> str:
        """Platform of the devices, "cpu", "gpu" or "tpu"; they may belong to a topology that is not attached."""
        return str(self.mesh.devices.flat[0].platform)

    def size(self, cut: Cut) -> int:
        """Number of shards of an array axis."""
        names = (cut,) if isinstance(cut, str) else cut or ()
        return math.prod(self.mesh.shape[name] for name in names)

    def sharding(self, shape: Sequence[int], cuts: Sequence[Cut]) -> NamedSharding:
        """The sharding of an array of that shape; axes beyond `cuts` are replicated."""
        cuts = tuple(cuts) + (None,) * (len(shape) - len(cuts))
        fits = [
            cut if size % self.size(cut) == 0 and self.size(cut) > 1 else None
            for size, cut in zip(shape, cuts, strict=True)
        ]
        return NamedSharding(self.mesh, PartitionSpec(*fits))

    def place(self, x: jax.Array, name: str) -> jax.Array:
        """`x` constrained to the sharding that `ACTIVATIONS` has for `name`."""
        return self.constrain(x, ACTIVATIONS[name])

    def constrain(self, x: jax.Array, cuts: Sequence[Cut]) -> jax.Array:
        """`x` constrained to the sharding of `cuts`."""
        constrained: jax.Array = jax.lax.with_sharding_constraint(x, self.sharding(x.shape, cuts))
        return constrained

    def whole(self) -> NamedSharding:
        """The sharding of a replicated array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, shape: Sequence[int], axis: int = 0) -> NamedSharding:
        """The sharding of a batch; axis: of the samples."""
        return self.sharding(shape, (None,) * axis + (BATCH,))

    def share(self) -> tuple[tuple[int, ...], int]:
        """The batch shards on this process's devices, `(shards, num_shards)`.

        Processes whose devices hold other tokens or channels of the same rows have the same shards. The shards need not
        be consecutive, as the devices of a host of a TPU pod are a block of its torus.
        """
        count = self.size(BATCH)
        indices = self.batch((count,)).addressable_devices_indices_map((count,)).values()
        local = {row for index in indices if index is not None for row in range(*index[0].indices(count))}
        return tuple(sorted(local)), count

    def assemble(self, rows: np.ndarray, axis: int = 0) -> jax.Array:
        """The global batch, given this process's rows of it (along `axis`), those of the shards of `share`."""
        parts, count = self.share()
        size = rows.shape[axis] // len(parts)  # number of rows per shard
        shape = list(rows.shape)
        shape[axis] = size * count

        def device_rows(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # one of this process's devices
            first, last, _ = index[axis].indices(shape[axis])
            local = [parts.index(part) for part in range(first // size, last // size)]
            return np.concatenate([rows.take(range(p * size, (p + 1) * size), axis) for p in local], axis)

        return jax.make_array_from_callback(tuple(shape), self.batch(shape, axis), device_rows)

    def spread(self, tree: Any) -> Any:
        """Replicates a tree that is equal in all processes (arrays, numbers, a key) over all devices."""

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = put(jax.random.key_data(leaf))
                key: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
                return key
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, self.whole(), lambda index: array[index])

        return jax.tree.map(put, tree)

    def tree(self, tree: Any, *, in_use: bool = False) -> Any:
        """The shardings of a tree of parameters, moments or a whole training state (arrays or ShapeDtypeStructs).

        Args:
          tree: the arrays.
          in_use: the shardings in use, where the fsdp axis is gathered, instead of those in storage.
        """

        def of(path: Sequence[Any], leaf: Any) -> NamedSharding:
            spec = partition_spec(_slashed(path), len(leaf.shape))
            return self.sharding(leaf.shape, without_fsdp(spec) if in_use else spec)

        return jax.tree_util.tree_map_with_path(of, tree)


def tree_layout(tree: Any) -> Layout | None:
    """The layout of a tree of arrays, such as parameters; None on a single device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and tuple(sharding.mesh.axis_names) == AXES:
        return Layout(cast(jax.sharding.Mesh, sharding.mesh))
    return None


def located(layout: Layout | None, tree: Any, *, in_use: bool = False) -> Any:
    """ShapeDtypeStructs of parameters or a state with the shardings of `Layout.tree`; unchanged without a layout."""
    if layout is None:
        return tree
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        layout.tree(tree, in_use=in_use),
    )


def spread(layout: Layout | None, tree: Any) -> Any:
    """`Layout.spread`; the unchanged tree without a layout."""
    return tree if layout is None else layout.spread(tree)


def gathered(layout: Layout | None, tree: Any) -> Any:
    """The tree constrained to be replicated, so that every process can read it; unchanged without a layout."""
    return tree if layout is None else jax.lax.with_sharding_constraint(tree, layout.whole())


def placed(layout: Layout | None, x: jax.Array, name: str) -> jax.Array:
    """`Layout.place`; the unchanged `x` without a layout."""
    return x if layout is None else layout.place(x, name)


def kernel_cuts(name: str, ndim: int) -> tuple[Spec, Spec]:
    """Shardings of the kernel of the dense layer `name` in storage, and in use, where the fsdp axis is gathered."""
    stored = partition_spec(f"{name}/kernel", ndim)
    return stored, without_fsdp(stored)


def without_fsdp(spec: Spec) -> Spec:
    """The sharding of a parameter in use, where the fsdp axis is gathered, from that in storage."""
    return tuple(None if axis == "fsdp" else axis for axis in spec)


def _slashed(path: Sequence[Any]) -> str:
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
