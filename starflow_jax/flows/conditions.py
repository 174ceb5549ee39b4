"""Conditions of a flow: which ones it reads, and those of guidance."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Shaped

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.guidance import AnyGuidance, Guidance
from starflow_jax.flows.order import AnyArray


def condition_or_default(
    config: FlowConfig, cond: Shaped[AnyArray, "..."] | None, batch: int
) -> Shaped[AnyArray, "..."] | None:
    """The condition that a call is given, or the default classes of the tokens where it is given none.

    Args:
      config: of the flow.
      cond: text states [B, L, text_dim], labels int [B], weights of classes [B, num_classes], classes of the tokens
        int [B, N] in raster order, or None.
      batch: B.

    Returns:
      `cond`; `config.default_classes` as int32 [B, N], where `cond` is None and the flow has them.

    Raises:
      ValueError: `cond` is not of the kind that flows of this configuration read, or has not `batch` rows.
    """
    if cond is None and config.default_classes is not None:
        return jnp.tile(jnp.asarray(config.default_classes, jnp.int32), (batch, 1))
    _check_condition(config, cond, batch)
    return cond


def _check_condition(c: FlowConfig, cond: Shaped[AnyArray, "..."] | None, batch: int) -> None:
    if c.text_dim:
        if cond is None or cond.ndim != 3 or cond.shape[0] != batch or cond.shape[2] != c.text_dim:
            actual = "None" if cond is None else f"shape {tuple(cond.shape)}"
            raise ValueError(f"cond must be text states [{batch}, L, {c.text_dim}], got {actual}")
    elif c.token_classes:
        tokens = c.grid[0] * c.grid[1]
        fits = cond is None or (cond.shape == (batch, tokens) and jnp.issubdtype(cond.dtype, jnp.integer))
        if not fits:
            assert cond is not None
            raise ValueError(
                f"cond must be integer classes of tokens [{batch}, {tokens}] or None, got {cond.dtype} of shape "
                f"{tuple(cond.shape)}"
            )
    elif c.num_classes:
        if cond is None:
            return
        labels = cond.shape == (batch,) and jnp.issubdtype(cond.dtype, jnp.integer)
        weights = cond.shape == (batch, c.num_classes) and jnp.issubdtype(cond.dtype, jnp.floating)
        if not (labels or weights):
            raise ValueError(
                f"cond must be integer labels [{batch}], weights of classes [{batch}, {c.num_classes}] or None, "
                f"got {cond.dtype} of shape {tuple(cond.shape)}"
            )
    elif cond is not None:
        raise ValueError(f"cond must be None for an unconditional flow, got shape {tuple(cond.shape)}")


def fold_condition(cond: Shaped[AnyArray, "B *rest"] | None, frames: int) -> Shaped[AnyArray, "rows *rest"] | None:
    """The condition repeated for every frame that is folded into the batch."""
    return cond if cond is None or frames == 1 else jnp.repeat(cond, frames, axis=0)


def check_guidance(config: FlowConfig, guidance: AnyGuidance | None, cond: Shaped[AnyArray, "..."] | None) -> None:
    """Raises ValueError where a flow does not support the guidance."""
    if guidance is None:
        return
    if isinstance(guidance, Guidance):
        if not config.text_dim:
            raise ValueError(f"Guidance needs a flow that reads text, got family '{config.family}' with text_dim=0")
        assert cond is not None  # `condition_or_default` has run
        null, (batch, length, width) = guidance.null, cond.shape
        if null is None or null.shape not in ((1, length, width), (batch, length, width)):
            actual = "None" if null is None else f"shape {tuple(null.shape)}"
            raise ValueError(f"guidance.null must be text states [1 or {batch}, {length}, {width}], got {actual}")
    elif config.family != "tarflow":
        raise ValueError(f"LinearGuidance is only supported by family 'tarflow', got family '{config.family}'")
    elif cond is not None and cond.ndim != 1:
        raise ValueError(f"guidance needs cond to be labels [B], got shape {tuple(cond.shape)}")
