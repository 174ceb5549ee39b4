"""What a block's network says of the next tokens, as it left the network: what a solver turns into an estimate."""

from __future__ import annotations

import functools
from typing import Protocol

import flax.struct
import jax

from starflow_jax.flows.affine import Affine
from starflow_jax.kernels.choice import Implementation, Target, target_of
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update import reference as jacobi_reference
from starflow_jax.kernels.jacobi_update.reference import Reading
from starflow_jax.sharding.layout import BATCH, Layout


class Estimate(Protocol):
    """What a solver asks of a prediction of n tokens; `Affine` is one too."""

    def inverse(self, z: jax.Array) -> jax.Array:
        """x = mean + scale * z, [B, n, c] float32."""

    def update(self, z: jax.Array, x: jax.Array, span: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One Jacobi update of x: [B, n, c], and the sums of its residual: see `jacobi_update.update`."""


@flax.struct.dataclass
class Prediction:
    """Mean and scale of n tokens, not worked out yet, so that a kernel can do it while it updates the estimate.

    Attributes:
      out: [B, n, 2c], the output of the network's last layer; [2B, n, 2c] under guidance.
      weight: of guidance, [] float32.
      first: place of the first of the tokens in the block's order, [] int32.
      reading: how `out` is read.
      layout: of the devices; None for one.
      implementation: of the update; None leaves the choice to `kernels.choice`.
    """

    out: jax.Array
    weight: float | jax.Array
    first: int | jax.Array
    reading: Reading = flax.struct.field(pytree_node=False)
    layout: Layout | None = flax.struct.field(pytree_node=False, default=None)
    implementation: Implementation = flax.struct.field(pytree_node=False, default=None)

    @property
    def affine(self) -> Affine:
        """Mean and scale, guided where the prediction is."""
        return Affine(*jacobi_reference.predicted(self.out, self.weight, self.first, self.reading))

    def inverse(self, z: jax.Array) -> jax.Array:
        """See `Estimate`."""
        return self.affine.inverse(z)

    @property
    def target(self) -> Target:
        """The devices that the program is for."""
        return target_of(None if self.layout is None else self.layout.mesh.devices.flat[0])

    def update(self, z: jax.Array, x: jax.Array, span: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Estimate`; over several devices each works on its own samples."""
        options = {"reading": self.reading, "target": self.target, "implementation": self.implementation}
        run = functools.partial(jacobi_update.update, **options)
        given = (z, x, span, self.weight, self.first)
        if self.layout is None or jacobi_update.chosen(self.out, x, self.target, self.implementation) == "xla":
            return run(self.out, *given)
        halves, layout = self.reading.halves, self.layout
        parted = self.out.reshape(halves, x.shape[0], *self.out.shape[1:])

        def local(parted, *given):
            return run(parted.reshape(-1, *parted.shape[2:]), *given)

        samples = layout.sharding(x.shape[:1], (BATCH,)).spec
        whole = jax.sharding.PartitionSpec()
        specs = (jax.sharding.PartitionSpec(None, *samples), samples, samples, samples, whole, whole)
        mapped = jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=(samples, samples), check_vma=False)
        return mapped(parted, *given)
