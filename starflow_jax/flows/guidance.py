"""Classifier-free guidance: formulas that combine a conditional and an unconditional prediction.

Specification, section 3.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from starflow_jax.core.choices import GuidanceKind
from starflow_jax.flows.affine import Affine
from starflow_jax.flows.order import AnyArray

# "ratio": STARFlow, `guide_by_ratio`; "a", "b", "ab": TARFlow, `guide_linearly` of the log scale, the mean, both.


def guide_by_ratio(conditional: Affine, unconditional: Affine, weight: float | Float[Array, ""]) -> Affine:
    """STARFlow's guidance (arXiv 2506.06276, "CFG").

    With s = min(scale_c / scale_u, 1)^2 and d = 1 + w - w s: scale = scale_c / sqrt(d),
    mean = ((1 + w) mean_c - w s mean_u) / d.
    """
    mean, scale = conditional.mean, conditional.scale
    w = jnp.float32(weight)
    s = jnp.minimum(scale / unconditional.scale, 1.0) ** 2
    d = 1.0 + w - w * s
    return Affine(((1.0 + w) * mean - w * s * unconditional.mean) / d, scale / jnp.sqrt(d))


def guide_linearly(
    conditional: Affine,
    unconditional: Affine,
    weight: Float[Array, ""] | Float[Array, "n 1"],
    what: Literal["ab", "a", "b"],
) -> Affine:
    """TARFlow's guidance (arXiv 2412.06329): v + w (v - v_u) of a = log scale ("a"), the mean ("b") or both ("ab")."""
    mean, scale = conditional.mean, conditional.scale
    if "b" in what:
        mean = mean + weight * (mean - unconditional.mean)
    if "a" in what:
        scale = scale * (scale / unconditional.scale) ** weight
    return Affine(mean, scale)


def annealed_weight(weight: float | Float[Array, ""], index: Int[Array, " n"], num_tokens: int) -> Float[Array, "n 1"]:
    """The weight w * j / (N - 1) of the tokens j = `index` of N = `num_tokens`, which grows along the sequence."""
    weights: jax.Array = jnp.float32(weight) * index / max(num_tokens - 1, 1)
    return weights[:, None]


@flax.struct.dataclass
class Guidance:
    """STARFlow's guidance of mean and scale, see `guide_by_ratio`.

    Attributes:
      weight: w >= 0; 0 leaves the conditional prediction unchanged.
      null: condition of the unconditional rows, text states [B, L, text_dim] of the empty caption.
      deep_only: guide the deep block only; the other blocks use the captions without guidance.
    """

    weight: float | Float[Array, ""]
    null: jax.Array | None = None
    deep_only: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def kind(self) -> GuidanceKind:
        """The formula that combines the predictions, see `AffineHead.guidance`."""
        return "ratio"

    @property
    def annealed(self) -> bool:
        """Whether the weight grows along the sequence."""
        return False

    def combine(self, conditional: Affine, unconditional: Affine, index: Int[Array, " n"], num_tokens: int) -> Affine:
        """The guided mean and scale.

        Args:
          conditional, unconditional: the two predictions of n tokens.
          index: indices of the tokens in the block's order.
          num_tokens: N, tokens of the sequence.
        """
        return guide_by_ratio(conditional, unconditional, self.weight)

    def unconditional(self, cond: Float[AnyArray, "B L E"]) -> Float[Array, "B L E"]:
        """The condition of the unconditional rows, [B, L, text_dim] as `cond`."""
        if self.null is None:
            raise ValueError("guidance.null is None; guiding a text model needs the text states of the empty caption")
        return jnp.broadcast_to(self.null, (cond.shape[0], *self.null.shape[1:]))

    def temperatures(self, batch: int) -> Float[Array, "rows"] | None:
        """Attention temperatures [2B] of conditional and unconditional rows, or None for 1."""
        return None


@flax.struct.dataclass
class LinearGuidance:
    """TARFlow's guidance of log scale and mean, see `guide_linearly`.

    The unconditional rows read the mean class embedding; in a flow without classes they differ from the conditional
    ones by their attention temperature alone.

    Attributes:
      weight: w >= 0.
      temperature: attention temperature of the unconditional rows.
      what: the guided quantity, "ab" (both), "a" (the log scale) or "b" (the mean).
      annealed: token j >= 1 of N uses w * j / (N - 1).
    """

    weight: float | Float[Array, ""]
    temperature: float | Float[Array, ""] = 1.0
    what: Literal["ab", "a", "b"] = flax.struct.field(pytree_node=False, default="ab")
    annealed: bool = flax.struct.field(pytree_node=False, default=False)
    deep_only: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def kind(self) -> GuidanceKind:
        """As `Guidance.kind`."""
        return self.what

    def combine(self, conditional: Affine, unconditional: Affine, index: Int[Array, " n"], num_tokens: int) -> Affine:
        """As `Guidance.combine`."""
        w = annealed_weight(self.weight, index, num_tokens) if self.annealed else jnp.float32(self.weight)
        return guide_linearly(conditional, unconditional, w, self.what)

    def unconditional(self, cond: Int[AnyArray, "B"]) -> Int[Array, "B"]:
        """Labels [B] of -1: every label dropped."""
        return jnp.full_like(cond, -1)

    def temperatures(self, batch: int) -> Float[Array, " rows"]:
        """As `Guidance.temperatures`."""
        ones = jnp.ones((batch,))
        return jnp.concatenate([ones, ones * self.temperature])


AnyGuidance = Guidance | LinearGuidance


def make_guidance(
    family: str,
    cond: Shaped[AnyArray, "B *rest"] | None,
    weight: float | Float[Array, ""],
    temperature: float | Float[Array, ""] = 1.0,
    null: Float[AnyArray, "rows L E"] | None = None,
    *,
    annealed: bool = False,
) -> AnyGuidance:
    """The guidance of a flow's family, away from no condition: no class, or the text states of the empty caption.

    Args:
      family: family of the flow, "tarflow" or another.
      cond: the condition that the flow reads, for its shape.
      weight: w >= 0.
      temperature: attention temperature of TARFlow's unconditional rows.
      null: text states [1 or B, L, text_dim] of the empty caption; None for zeros, the states that the built-in text
        encoders give.
      annealed: whether TARFlow's weight grows along the sequence.
    """
    if family == "tarflow":
        return LinearGuidance(jnp.float32(weight), temperature, annealed=annealed)
    assert cond is not None  # flows of other families are guided by text only
    return Guidance(jnp.float32(weight), jnp.zeros_like(cond) if null is None else jnp.asarray(null))


def doubled(x: Float[Array, "B *rest"]) -> Float[Array, "rows *rest"]:
    """[x; x] along the batch: conditional, then unconditional rows."""
    return jnp.concatenate([x, x], axis=0)


def halves(affine: Affine) -> tuple[Affine, Affine]:
    """The conditional and the unconditional rows of a doubled batch."""
    (mean_c, mean_u), (scale_c, scale_u) = (jnp.split(a, 2, axis=0) for a in (affine.mean, affine.scale))
    return Affine(mean_c, scale_c), Affine(mean_u, scale_u)
