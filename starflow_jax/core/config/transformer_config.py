"""Configuration of a stack of transformer layers."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.config.checks import check, check_choices, check_integer


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm transformer layers with all sizes resolved.

    Attributes:
      width: channels of the residual stream.
      layers: number of layers; 0 makes the enclosing block the identity map.
      heads, kv_heads, head_dim: query heads, key/value heads (grouped-query attention), channels of a head.
      expansion: ratio of the hidden channels of the MLP to ``width``.
      mlp: "gelu" (Linear, exact GELU, Linear) or "gated" (down(gelu_tanh(gate(h)) * up(h))).
      norm: "layer" (eps 1e-5) or "rms" (eps 1e-6, gain 1 + weight).
      qk_norm, post_norm, final_norm: RMSNorm on queries and keys, on both branch outputs, on the last hidden state.
      bias: biases of the qkv, output and MLP projections.
      rope: "none", "axial" (row, column and, if the model has one, a third axis) or "1d" (text, then tokens).
      rope_pairs: "adjacent" rotates channels (2k, 2k+1), "half" rotates (k, k + head_dim/2).
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    expansion: int = 4
    mlp: Literal["gelu", "gated"] = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    qk_norm: bool = False
    post_norm: bool = False
    final_norm: bool = False
    bias: bool = True
    rope: Literal["none", "axial", "1d"] = "none"
    rope_pairs: Literal["adjacent", "half"] = "adjacent"

    def __post_init__(self) -> None:
        for name in ("width", "heads", "kv_heads", "head_dim", "expansion"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("layers", self.layers, minimum=0)
        check_choices(self)
        check(
            self.heads % self.kv_heads == 0,
            f"kv_heads must divide heads, got kv_heads={self.kv_heads} and heads={self.heads}",
        )
        if self.rope != "none":
            check(self.head_dim % 2 == 0, f"head_dim must be even for rotary positions, got {self.head_dim}")
