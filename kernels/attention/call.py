"""The static description of an attention call, and the interface of its implementations."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.schedule import Problem
from starflow_jax.kernels.kernel_choice import Support, Target


class Bounds(NamedTuple):
    """The slots of a call, integers or traced int32.

    Attributes:
      offset: slot of the first query.
      length: keys from this slot on are visible to no query; None where all are valid (only in the reference).
      layer: the layer to read where keys and values are those of all layers.
    """

    offset: Any = 0
    length: Any = None
    layer: Any = None


class Residuals(NamedTuple):
    """The residuals of the backward pass: the operands, and the results of the forward pass.

    Attributes:
      query: [B, h, n, d]; key, value: [B, k, S, d], one layer.
      out: [B, h, n, d]; lse: log of the sum of exp(logits), None where the implementation does not compute it.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array
    lse: jax.Array | None


# dq, dk, dv.
Gradients = tuple[Float[Array, "B h n d"], Float[Array, "B k S d"], Float[Array, "B k S d"]]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """The static description of one call; hashable.

    Attributes:
      rule: which keys are visible to a query.
      target: the devices that the program is compiled for.
      num_heads, num_kv_heads, num_queries, num_slots, head_dim: sizes; `num_slots` with the padding of the kernel.
      dtypes: of query, key and value.
      offset, length: of `Bounds` where they are known when the program is traced, else None.
      stacked: keys and values are [layers, B, k, S, d].
      tiles: block sizes, the type depends on the implementation; None for its default.
      precision: of float32 products.
      query_chunk: queries at a time of the reference.
      interpret: run the kernel on any device, slowly.
    """

    rule: Visibility
    target: Target
    num_heads: int
    num_kv_heads: int
    num_queries: int
    num_slots: int
    head_dim: int
    dtypes: tuple[Any, Any, Any]
    offset: int | None = None
    length: int | None = None
    stacked: bool = False
    tiles: Any = None
    precision: jax.lax.PrecisionLike = None
    query_chunk: int | None = None
    interpret: Any = False

    @property
    def exact(self) -> bool:
        """Whether float32 products are computed in float32 rather than in one pass of bfloat16."""
        return self.precision not in (None, "default", "fastest", "bfloat16", jax.lax.Precision.DEFAULT)

    @property
    def product_precision(self) -> jax.lax.Precision | None:
        """Precision of the products inside a kernel."""
        exact = self.exact and self.dtypes[0] == jnp.float32
        return jax.lax.Precision.HIGHEST if exact else None

    @property
    def problem(self) -> Problem:
        """The problem of the call, from which a schedule of blocks is built."""
        return Problem(self.rule, self.num_queries, self.num_slots, self.num_queries)

    def bounds(self, traced: Int[Array, "3"]) -> Bounds:
        """Integers where they are known, and otherwise from `traced`: int32 [offset, length, layer]."""
        offset = traced[0] if self.offset is None else self.offset
        length = traced[1] if self.length is None else self.length
        return Bounds(offset, length, traced[2] if self.stacked else None)


@runtime_checkable
class AttentionKernel(Protocol):
    """An implementation of attention; hashable, without state."""

    def supports(self, call: AttentionCall) -> Support:
        """Whether the implementation covers a call, or why not.

        Raises:
          ValueError: invalid `call.tiles`.
        """

    def prepare(self, call: AttentionCall) -> AttentionCall:
        """The call with its tiles chosen, and with padded slots where the implementation needs them."""

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "*layers B k S d"],
        value: Float[Array, "*layers B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], Float[Array, "B h ... n"] | None]:
        """Attention [B, h, n, d] in the dtype of `value`, and the log of the sum of exp(logits) or None.

        Args:
          call: from `prepare`.
          query: [B, h, n, d], already multiplied by the softmax scale.
          key, value: [B, k, S, d], or [layers, B, k, S, d] where `call.stacked`.
          bounds: slots of queries and keys.
        """

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """dq, dk, dv in the shapes and dtypes of query, key and value; `do` is the gradient of the output."""


def select_layer(cache: Float[Array, "*layers B k S d"], bounds: Bounds) -> Float[Array, "B k S d"]:
    """Keys or values [B, k, S, d] of the layer that a call reads."""
    return cache if bounds.layer is None else jax.lax.dynamic_index_in_dim(cache, bounds.layer, keepdims=False)
