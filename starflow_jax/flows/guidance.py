"""Classifier-free guidance: how two predictions, with and without the condition, become one.

Specification, section 3.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.flows.affine import Affine
from starflow_jax.flows.block import BlockPredict
from starflow_jax.flows.prediction import Prediction
from starflow_jax.kernels.jacobi_update import reference as jacobi_reference
from starflow_jax.kernels.jacobi_update.reference import Reading
from starflow_jax.nn.cache import KVCache


@flax.struct.dataclass
class Guidance:
    """STARFlow's guidance on mean and scale (arXiv 2506.06276, "CFG").

    With s = min(scale_c / scale_u, 1)^2 and d = 1 + w - w s: scale = scale_c / sqrt(d),
    mean = ((1 + w) mean_c - w s mean_u) / d.

    Attributes:
      weight: w >= 0; 0 leaves the conditional prediction as it is.
      null: what the unconditional half reads, text states [B, L, text_dim] (the empty caption).
      deep_only: guide the deep block only; the others see the captions alone.
    """

    weight: float | jax.Array
    null: jax.Array | None = None
    deep_only: bool = flax.struct.field(pytree_node=False, default=False)

    def combine(self, conditional: Affine, unconditional: Affine, index: jax.Array, count: int) -> Affine:
        """The guided mean and scale; index: [n], places of the tokens in the block's order; count: N."""
        parts = (conditional.mean, conditional.scale, unconditional.mean, unconditional.scale)
        return Affine(*jacobi_reference.guided_by_ratio(*parts, self.weight))

    def read(self, reading: Reading, count: int) -> Reading:
        """How the output of a doubled batch is read; count: N."""
        return dataclasses.replace(reading, guidance="ratio")

    def unconditional(self, cond: jax.Array) -> jax.Array:
        """The condition of the unconditional half."""
        if self.null is None:
            raise ValueError("guidance.null is None; guiding a text model needs the text states of the empty caption")
        return jnp.broadcast_to(self.null, (cond.shape[0], *self.null.shape[1:]))

    def temperatures(self, batch: int) -> jax.Array | None:
        """Attention temperatures of the doubled batch, [2B], or None."""
        return None


@flax.struct.dataclass
class LinearGuidance:
    """TARFlow's guidance: v + w (v - v_u) on a = log scale, the mean, or both (arXiv 2412.06329).

    The unconditional half reads the mean class embedding; a flow without classes is guided by the attention
    temperature of that half alone.

    Attributes:
      weight: w >= 0.
      what: "ab" (both), "a" or "b" (the mean).
      annealed: token j >= 1 of N uses w * j / (N - 1).
      temperature: attention temperature of the unconditional half.
    """

    weight: float | jax.Array
    temperature: float | jax.Array = 1.0
    what: Literal["ab", "a", "b"] = flax.struct.field(pytree_node=False, default="ab")
    annealed: bool = flax.struct.field(pytree_node=False, default=False)
    deep_only: bool = flax.struct.field(pytree_node=False, default=False)

    def combine(self, conditional: Affine, unconditional: Affine, index: jax.Array, count: int) -> Affine:
        """As `Guidance.combine`."""
        w = jacobi_reference.annealed(self.weight, index, count) if self.annealed else jnp.float32(self.weight)
        parts = (conditional.mean, conditional.scale, unconditional.mean, unconditional.scale)
        return Affine(*jacobi_reference.guided_linearly(*parts, w, self.what))

    def read(self, reading: Reading, count: int) -> Reading:
        """As `Guidance.read`."""
        return dataclasses.replace(reading, guidance=self.what, annealed=count if self.annealed else 0)

    def unconditional(self, cond: jax.Array) -> jax.Array:
        """Every label dropped."""
        return jnp.full_like(cond, -1)

    def temperatures(self, batch: int) -> jax.Array:
        """As `Guidance.temperatures`."""
        ones = jnp.ones((batch,))
        return jnp.concatenate([ones, ones * self.temperature])


AnyGuidance = Guidance | LinearGuidance


def guidance_of(
    family: str,
    cond: jax.Array | None,
    weight: float | jax.Array,
    temperature: float | jax.Array = 1.0,
    null: jax.Array | None = None,
) -> AnyGuidance:
    """The guidance of a flow's own family, away from no condition: no class, or the text states of no caption.

    Args:
      family: of the flow. cond: what it reads, for its shape.
      weight: w >= 0. temperature: attention temperature of TARFlow's unconditional half.
      null: text states [1 or B, L, text_dim] of the empty caption; None for zeros, which those of words are.
    """
    if family == "tarflow":
        return LinearGuidance(jnp.float32(weight), temperature)
    assert cond is not None  # no other flow is guided
    return Guidance(jnp.float32(weight), jnp.zeros_like(cond) if null is None else null)


def doubled(x: jax.Array) -> jax.Array:
    """[x; x] along the batch."""
    return jnp.concatenate([x, x], axis=0)


def halves(affine: Affine) -> tuple[Affine, Affine]:
    """The conditional and the unconditional half of a doubled batch."""
    (mean_c, mean_u), (scale_c, scale_u) = (jnp.split(a, 2, axis=0) for a in (affine.mean, affine.scale))
    return Affine(mean_c, scale_c), Affine(mean_u, scale_u)


def guided(predict: BlockPredict, guidance: AnyGuidance, count: int) -> BlockPredict:
    """Wraps the prediction of a doubled batch, so that solvers see one guided prediction and no guidance.

    Args:
      predict: of 2B rows, conditional then unconditional.
      guidance: how to combine them.
      count: tokens N of the sequence.

    Returns:
      A prediction of B rows; its cache still holds 2B.
    """

    def predict_guided(previous: jax.Array, first: int | jax.Array, cache: KVCache) -> tuple[Prediction, KVCache]:
        both, cache = predict(doubled(previous), first, cache)
        weight = jnp.float32(guidance.weight)
        return dataclasses.replace(both, weight=weight, reading=guidance.read(both.reading, count)), cache

    return predict_guided
