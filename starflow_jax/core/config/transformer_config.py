"""Configuration of a stack of transformer layers."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.choices import MLPKind, Norm
from starflow_jax.core.config.checks import check, check_choice, check_choices, check_integer


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm transformer layers with all sizes resolved.

    Attributes:
      width: channels of the residual stream.
      layers: number of layers; 0 makes the enclosing block the identity map.
      heads, kv_heads, head_dim: query heads, key/value heads (grouped-query attention), channels of a head.
      expansion: ratio of the hidden channels of the MLP to ``width``.
      mlp: "gelu" (Linear, exact GELU, Linear), "gated" (down(gelu_tanh(gate(h)) * up(h))), or "swiglu", with SiLU in
        place of the GELU (arXiv 2002.05202).
      norm: "layer" (eps 1e-5), "rms" (eps 1e-6, gain 1 + weight), or "adaptive", a layer norm whose scale and shift,
        and a gate of the branch's output, are linear in a condition and zero at first (adaLN-Zero, arXiv 2212.09748).
      qk_norm: norm of queries and keys, by head: True for RMSNorm, or "layer".
      post_norm, final_norm: RMSNorm on both branch outputs, on the last hidden state.
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
    mlp: MLPKind = "gelu"
    norm: Norm = "layer"
    qk_norm: bool | Literal["layer"] = False
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
        check_choice("qk_norm", self.qk_norm, (False, True, "layer"))
        check(
            self.heads % self.kv_heads == 0,
            f"kv_heads must divide heads, got kv_heads={self.kv_heads} and heads={self.heads}",
        )
        if self.rope != "none":
            check(self.head_dim % 2 == 0, f"head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def mlp_kernels(self) -> int:
        """Number of kernels of an MLP."""
        return 2 if self.mlp == "gelu" else 3

    @property
    def modulation(self) -> int:
        """Number of outputs of a layer's adaptive norms, in channels: scale, shift and gate of both branches, or 0."""
        return 6 if self.norm == "adaptive" else 0
