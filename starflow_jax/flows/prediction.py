"""A block's prediction of the next tokens: the network's output, before mean and scale are computed from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.flows.affine import Affine
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.flows.guidance import AnyGuidance, doubled
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.kernel_choice import Implementation, Target, device_target
from starflow_jax.nn.cache import KVCache
from starflow_jax.sharding.layout import BATCH, Layout


@runtime_checkable
class Estimate(Protocol):
    """The interface of a prediction of n tokens for solvers; `Prediction` and `Affine` implement it."""

    def inverse(self, z: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """x = mean + scale * z, float32."""

    def update(
        self, z: Float[Array, "B n c"], x: Float[Array, "B n c"], span: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n c"], Float[Array, "B 2"]]:
        """One Jacobi update of the estimate x, and the sums of its residual: see `kernels.jacobi_update.api.update`."""


@flax.struct.dataclass
class Prediction:
    """The network's output for n tokens; a kernel computes mean and scale while it updates the estimate.

    Attributes:
      out: [B, n, 2c], output of the network's last layer; [2B, n, 2c] under guidance.
      weight: guidance weight, [] float32.
      first: index of the first of the tokens in the block's order, [] int32.
      head: how `out` gives mean and scale.
      layout: the mesh; None for one device.
      implementation: of the Jacobi update; None leaves the choice to `kernels.kernel_choice`.
    """

    out: jax.Array
    weight: float | Float[Array, ""]
    first: int | Int[Array, ""]
    head: AffineHead = flax.struct.field(pytree_node=False)
    layout: Layout | None = flax.struct.field(pytree_node=False, default=None)
    implementation: Implementation = flax.struct.field(pytree_node=False, default=None)

    @property
    def affine(self) -> Affine:
        """Mean and scale, after guidance."""
        return self.head.affine(self.out, self.weight, self.first)

    def inverse(self, z: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """See `Estimate`."""
        return self.affine.inverse(z)

    @property
    def target(self) -> Target:
        """The devices that the program is compiled for."""
        return device_target(None if self.layout is None else self.layout.mesh.devices.flat[0])

    def update(
        self, z: Float[Array, "B n c"], x: Float[Array, "B n c"], span: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n c"], Float[Array, "B 2"]]:
        """See `Estimate`; over a mesh a kernel runs on every device for that device's samples."""
        options: dict[str, Any] = {"head": self.head, "target": self.target, "implementation": self.implementation}
        run = functools.partial(jacobi_update.update, **options)
        operands = (z, x, span, self.weight, self.first)
        if self.layout is None or jacobi_update.chosen(self.out, x, **options) == "xla":
            return run(self.out, *operands)
        layout = self.layout
        passes = self.out.reshape(self.head.num_passes, x.shape[0], *self.out.shape[1:])

        def local(passes, *operands):
            return run(passes.reshape(-1, *passes.shape[2:]), *operands)

        samples = layout.sharding(x.shape[:1], (BATCH,)).spec
        replicated = jax.sharding.PartitionSpec()
        specs = (jax.sharding.PartitionSpec(None, *samples), samples, samples, samples, replicated, replicated)
        mapped = jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=(samples, samples), check_vma=False)
        return mapped(passes, *operands)


# predict(previous, first, cache): mean and scale of tokens first .. first + n - 1 in the block's order, from the n
# tokens before them, previous: [B, n, c] (the start token where first = 0), and everything earlier in the cache.
Predict = Callable[[jax.Array, "int | jax.Array", KVCache], tuple[Estimate, KVCache]]
BlockPredict = Callable[[jax.Array, "int | jax.Array", KVCache], tuple[Prediction, KVCache]]


def guided(predict: BlockPredict, guidance: AnyGuidance, num_tokens: int) -> BlockPredict:
    """Wraps the prediction of a doubled batch, so that solvers get one guided prediction and need no code for guidance.

    Args:
      predict: prediction of 2B rows, conditional then unconditional.
      guidance: how to combine them.
      num_tokens: N, tokens of the sequence.

    Returns:
      A prediction of B rows; its cache has 2B.
    """

    def predict_guided(previous: jax.Array, first: int | Int[Array, ""], cache: KVCache) -> tuple[Prediction, KVCache]:
        both, cache = predict(doubled(previous), first, cache)
        annealed_tokens = num_tokens if guidance.annealed else 0
        head = dataclasses.replace(both.head, guidance=guidance.kind, annealed_tokens=annealed_tokens)
        return dataclasses.replace(both, weight=jnp.float32(guidance.weight), head=head), cache

    return predict_guided
