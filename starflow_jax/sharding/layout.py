"""Where arrays lie on a mesh of devices: a handful of named places for activations, a table of rules for parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from starflow_jax.core.config.mesh import AXES
from starflow_jax.sharding.rules import Spec, spec_of

# An axis of an array may be cut by several axes of the mesh.
Cut = str | tuple[str, ...] | None

BATCH = ("data", "fsdp")

ACTIVATIONS: dict[str, tuple[Cut, ...]] = {
    # hidden states [B, n, D]: whole channels, so that norms need no communication
    "hidden": (BATCH, "sequence", None),
    # inside the MLP, and the joined heads: [B, n, channels]
    "channels": (BATCH, "sequence", "tensor"),
    # the same by head, before they are parted into q, k, v: [B, n, k, group + 2, d]
    "packed": (BATCH, "sequence", "tensor", None, None),
    # q, k, v [B, heads, n, d]: the tokens come together, the heads part (DeepSpeed-Ulysses, arXiv 2309.14509)
    "heads": (BATCH, ("tensor", "sequence"), None, None),
    # data, conditions and weights of samples: [B, ...]
    "batch": (BATCH,),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with the axes of `config.mesh.AXES`; static under `jit`.

    Where an axis of an array does not divide into as many parts as the mesh asks for, it stays whole: a single token
    of decoding, or a batch of one, is computed by all.
    """

    mesh: jax.sharding.Mesh

    @property
    def platform(self) -> str:
        """What the devices are, "cpu", "gpu" or "tpu"; they may be those of a topology that is not there."""
        return self.mesh.devices.flat[0].platform

    def size(self, cut: Cut) -> int:
        """Parts into which an axis is cut."""
        names = (cut,) if isinstance(cut, str) else cut or ()
        return math.prod(self.mesh.shape[name] for name in names)

    def sharding(self, shape: Sequence[int], cuts: Sequence[Cut]) -> NamedSharding:
        """The sharding of an array of that shape; axes beyond `cuts` are whole."""
        cuts = tuple(cuts) + (None,) * (len(shape) - len(cuts))
        fits = [
            cut if size % self.size(cut) == 0 and self.size(cut) > 1 else None
            for size, cut in zip(shape, cuts, strict=True)
        ]
        return NamedSharding(self.mesh, PartitionSpec(*fits))

    def place(self, x: jax.Array, name: str) -> jax.Array:
        """`x` at one of the named places of `ACTIVATIONS`."""
        return jax.lax.with_sharding_constraint(x, self.sharding(x.shape, ACTIVATIONS[name]))

    def constrain(self, x: jax.Array, cuts: Sequence[Cut]) -> jax.Array:
        """`x` cut as said."""
        return jax.lax.with_sharding_constraint(x, self.sharding(x.shape, cuts))

    def whole(self) -> NamedSharding:
        """The sharding of what every device holds all of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, shape: Sequence[int], axis: int = 0) -> NamedSharding:
        """The sharding of a batch whose samples lie along `axis`."""
        return self.sharding(shape, (None,) * axis + (BATCH,))

    def share(self) -> tuple[tuple[int, ...], int]:
        """Which of how many equal parts of every batch's rows this process's devices hold: `(parts, count)`.

        Processes whose devices hold other tokens or channels of the same rows have the same parts. They need not
        follow one another: a host of a TPU pod is a corner of its torus.
        """
        count = self.size(BATCH)
        places = self.batch((count,)).addressable_devices_indices_map((count,)).values()
        held = {row for place in places if place is not None for row in range(*place[0].indices(count))}
        return tuple(sorted(held)), count

    def assemble(self, rows: np.ndarray, axis: int = 0) -> jax.Array:
        """A batch over the devices, of which every process has its share of the rows (along `axis`) in `rows`."""
        parts, count = self.share()
        size = rows.shape[axis] // len(parts)  # of one part
        shape = list(rows.shape)
        shape[axis] = size * count

        def of_device(place: tuple[slice, ...] | None) -> np.ndarray:
            assert place is not None  # one of this process's devices
            first, last, _ = place[axis].indices(shape[axis])
            own = [parts.index(part) for part in range(first // size, last // size)]
            return np.concatenate([rows.take(range(p * size, (p + 1) * size), axis) for p in own], axis)

        return jax.make_array_from_callback(tuple(shape), self.batch(shape, axis), of_device)

    def spread(self, tree: Any) -> Any:
        """What every process holds alike (arrays, numbers, a key), whole on every device."""

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, self.whole(), lambda place: array[place])

        return jax.tree.map(put, tree)

    def tree(self, tree: Any) -> Any:
        """The shardings of a tree of parameters, moments or a whole training state (arrays or ShapeDtypeStructs)."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self.sharding(leaf.shape, spec_of(_slashed(path), len(leaf.shape))), tree
        )


def layout_of(tree: Any) -> Layout | None:
    """The layout that a tree of arrays, such as parameters, lies in; None where it lies on one device."""
    sharding = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and tuple(sharding.mesh.axis_names) == AXES:
        return Layout(cast(jax.sharding.Mesh, sharding.mesh))
    return None


def located(layout: Layout | None, tree: Any) -> Any:
    """ShapeDtypeStructs of parameters or a state with their shardings; as they are on one device."""
    if layout is None:
        return tree
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, layout.tree(tree)
    )


def spread(layout: Layout | None, tree: Any) -> Any:
    """`Layout.spread`, or the tree as it is on one device."""
    return tree if layout is None else layout.spread(tree)


def gathered(layout: Layout | None, tree: Any) -> Any:
    """Results whole on every device, for every process to read; as they are on one device."""
    return tree if layout is None else jax.lax.with_sharding_constraint(tree, layout.whole())


def placed(layout: Layout | None, x: jax.Array, name: str) -> jax.Array:
    """`Layout.place`, or `x` as it is on one device."""
    return x if layout is None else layout.place(x, name)


def kernel_cuts(name: str, ndim: int) -> tuple[Spec, Spec]:
    """How the kernel of the dense layer called `name` is stored, and how it is used: the fsdp axis gathered."""
    stored = spec_of(f"{name}/kernel", ndim)
    return stored, tuple(None if axis == "fsdp" else axis for axis in stored)


def _slashed(path: Sequence[Any]) -> str:
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
