"""The reference of the parallel Jacobi update in plain jnp, and the structures that describe a call of it.

An update computes mean and scale of every token from the network's output, x = mean + scale z, leaves the tokens
outside the span unchanged, and measures the change of the others (specification, section 4). The reference runs on
CPUs and where no kernel applies; the kernels in `tpu` and `gpu` are tested against it. An `OutputHead`, which `flows`
implements, computes mean and scale from the output.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.core.choices import GuidanceKind, Scale
from starflow_jax.kernels.kernel_choice import Support, Target

# The new estimate [B, n, c], and the sums of (new - old)^2 and new^2 [B, 2].
Updated = tuple[Float[Array, "B n c"], Float[Array, "B 2"]]


@runtime_checkable
class OutputHead(Protocol):
    """Computes mean and scale from the network's output; static and hashable. `flows.affine_head` implements it.

    The reference calls `mean_and_scale`; kernels compute the same from the attributes.

    Attributes:
      scale: "softplus", "exp" or "unit".
      soft_clip: bound of the output, 0 for none.
      guidance: None, or "ratio", "ab", "a" or "b".
      annealed_tokens: N where the guidance weight of token j of N is multiplied by j / (N - 1), else 0.
      num_passes: rows of output for one row of the estimate: 2 under guidance, else 1.
    """

    @property
    def scale(self) -> Scale: ...

    @property
    def soft_clip(self) -> float: ...

    @property
    def guidance(self) -> GuidanceKind | None: ...

    @property
    def annealed_tokens(self) -> int: ...

    @property
    def num_passes(self) -> int: ...

    def mean_and_scale(
        self, out: Float[Array, "rows n outputs"], weight: float | Float[Array, ""], first: int | Int[Array, ""]
    ) -> tuple[Float[Array, "B n c"], Float[Array, "B n c"]]:
        """Mean and scale [B, n, c] float32 of the tokens, arguments as in `Operands`."""


class Operands(NamedTuple):
    """The arrays of one update.

    Attributes:
      out: [B, n, 2c] float32 or bfloat16, output of the network's last layer for the n tokens of a chunk; under
        guidance [2B, n, 2c], conditional rows first; c channels instead of 2c where the scale is "unit".
      z: [B, n, c] float32 noise.
      x: [B, n, c] float32, the old estimate.
      span: [B, 2] int32; tokens span[b, 0] to span[b, 1] - 1 of sample b change. All others (a committed prefix, tokens
        behind the end, samples that have converged) are unchanged.
      weight: guidance weight, [] float32.
      first: index of the chunk's first token in the sequence, [] int32, for an annealed weight.
    """

    out: jax.Array
    z: jax.Array
    x: jax.Array
    span: jax.Array
    weight: float | jax.Array
    first: int | jax.Array


@dataclasses.dataclass(frozen=True)
class UpdateCall:
    """The static description of one update.

    Attributes:
      head: how the output gives mean and scale.
      target: the devices that the program is compiled for.
      out_dtype: dtype of the network's output.
      num_samples, num_tokens, num_channels: B, n, c.
      interpret: run the kernel on any device, slowly (a bool, or the interpreter's parameters).
    """

    head: OutputHead
    target: Target
    out_dtype: Any
    num_samples: int
    num_tokens: int
    num_channels: int
    interpret: Any = False

    @classmethod
    def from_arrays(cls, out: Any, x: Any, head: OutputHead, target: Target, interpret: Any = False) -> UpdateCall:
        """The call that updates `x` by `out`; only shapes and dtypes of the two matter."""
        samples, tokens, channels = x.shape
        return cls(head, target, jnp.dtype(out.dtype), samples, tokens, channels, interpret)


@runtime_checkable
class UpdateImplementation(Protocol):
    """An implementation of the Jacobi update for one platform."""

    def supports(self, call: UpdateCall) -> Support:
        """Whether the implementation covers a call, or why not."""

    def update(self, call: UpdateCall, operands: Operands) -> Updated:
        """The new estimate, and the sums of its change: see `api.update`."""


def masked_update(
    new: Float[Array, "B n c"], x: Float[Array, "B n c"], span: Int[Array, "B 2"]
) -> tuple[Float[Array, "B n c"], Float[Array, "B 2"]]:
    """`new` for the tokens in `span` and `x` for all others, and the sums of `api.update`."""
    index = jnp.arange(x.shape[1])
    moves = ((index >= span[:, :1]) & (index < span[:, 1:]))[:, :, None]
    change = jnp.sum(jnp.where(moves, new - x, 0.0) ** 2, axis=(1, 2))
    size = jnp.sum(jnp.where(moves, new, 0.0) ** 2, axis=(1, 2))
    return jnp.where(moves, new, x), jnp.stack([change, size], axis=1)


def reference_update(head: OutputHead, operands: Operands) -> Updated:
    """The update in plain jnp."""
    mean, scale = head.mean_and_scale(operands.out, operands.weight, operands.first)
    return masked_update(mean + scale * operands.z, operands.x, operands.span)


class ReferenceUpdate:
    """The update in plain jnp, compiled by XLA: every platform, every call."""

    def supports(self, call: UpdateCall) -> Support:
        """See `UpdateImplementation`."""
        return Support()

    def update(self, call: UpdateCall, operands: Operands) -> Updated:
        """See `UpdateImplementation`."""
        return reference_update(call.head, operands)
