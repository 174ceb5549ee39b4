"""The annotations of the package are checked while the tests run."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from starflow_jax.flows.order import patchify


def test_a_wrong_number_of_axes_is_refused():
    assert patchify(jnp.zeros((1, 4, 4, 3)), 2, "starflow").shape == (1, 2, 2, 12)
    with pytest.raises(TypeCheckError):
        patchify(jnp.zeros((4, 3)), 2, "starflow")


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeCheckError):
        patchify(jnp.zeros((1, 4, 4, 3)), "2", "starflow")
