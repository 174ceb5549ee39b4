"""Conversion of nats to bits per dimension (specification, section 2)."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float


def bits_per_dim(log_prob: Float[Any, "*shape"], dims: int, levels: int = 256) -> Float[Any, "*shape"]:
    """Bits/dim of integer data with `levels` values, dequantised to x = 2 (v + u) / levels - 1 with u in [0, 1).

    Args:
      log_prob: log density of x in nats; an array or scalar of NumPy or JAX.
      dims: number of values of one example.
      levels: number of values of a pixel; each spans 2 / levels of x, hence the term log(levels / 2).

    Returns:
      Array of that shape; lower is better.
    """
    return (math.log(levels / 2.0) - log_prob / dims) / math.log(2.0)
