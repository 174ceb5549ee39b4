"""`adapted`: a distribution as that of another library."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import jax
import jax.numpy as jnp

from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.core.choices import choices
from starflow_jax.core.config.checks import check, check_choice

Library = Literal["flowjax", "distrax", "numpyro", "tfp"]


def adapted(distribution: Distribution, library: Library, condition: jax.Array | None = None) -> Any:
    """A flow as a transformed standard normal of another library, whose bijection is the flow.

    Args:
      distribution: see `distribution`.
      library: "flowjax" gives `flowjax.distributions.Transformed` (its `bijection` is an `AbstractBijection`, which
        reads conditions where none is given here); "distrax" gives `distrax.Transformed` (`bijector`); "numpyro" gives
        `numpyro.distributions.TransformedDistribution` (`transforms[0]`), for `numpyro.sample`; and "tfp" gives
        `TransformedDistribution` of `tensorflow_probability.substrates.jax` (`bijector`).
      condition: see `Distribution`; its leading axes become the batch shape. For "flowjax" it has none.

    Returns:
      The distribution. That of FlowJAX, distrax or NumPyro is a pytree with the parameters of the flow as leaves.

    Raises:
      ValueError: an unknown library, or one that is not installed; a condition that does not fit the flow.
    """
    check_choice("library", library, choices(Library))
    condition = None if condition is None else jnp.asarray(condition)
    leading = distribution.leading_axes(condition)
    check(
        library != "flowjax" or not leading,
        f"condition must have no leading axes for library 'flowjax', whose distributions take their batch from the "
        f"conditions of each call, got the leading axes {list(leading)}",
    )
    try:
        module = importlib.import_module(f"starflow_jax.api.adapters.{library}_adapter")
    except (ImportError, AttributeError) as error:  # a release that does not know this JAX fails with the latter
        raise ValueError(
            f"library {library!r} must be installed in a version for JAX {jax.__version__}: pip install "
            f"'starflow-jax[{library}]', got {error}"
        ) from error
    return module.transformed(distribution, condition)
