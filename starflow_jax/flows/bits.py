"""Conversion of nats to bits per dimension (specification, section 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

# A number, or an array of NumPy or JAX of any shape; the result has the type of the argument.
if TYPE_CHECKING:
    NumberOrArray = Any
else:
    NumberOrArray = float | Float[Any, "*shape"]


def bits_per_dim(log_prob: NumberOrArray, dims: int, levels: int = 256) -> NumberOrArray:
    """Bits/dim of integer data with `levels` values, dequantised to x = 2 (v + u) / levels - 1 with u in [0, 1).

    Args:
      log_prob: log density of x in nats; a number or an array of any shape.
      dims: number of values of one example.
      levels: number of values of a pixel; each spans 2 / levels of x, hence the term log(levels / 2).

    Returns:
      Array of that shape; lower is better.
    """
    return (math.log(levels / 2.0) - log_prob / dims) / math.log(2.0)
