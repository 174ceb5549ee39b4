"""The GELU: in bfloat16 value and derivative are within one rounding of the exact ones, for every number."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from starflow_jax.nn.gelu import gelu

# Smaller results are 0 on machines that flush subnormal numbers: Phi is subnormal before its product with x.
SMALLEST = 2.0**-122


@pytest.fixture(scope="module")
def numbers():
    magnitudes = np.arange(0x7F80, dtype=np.uint16)  # up to the largest finite number
    return np.concatenate([magnitudes, magnitudes + 2**15]).astype(np.uint16).view(ml_dtypes.bfloat16)


def exact(numbers):
    """Value, first and second derivative in float64."""
    x = numbers.astype(np.float64)
    distribution = np.array([0.5 * math.erfc(-value * math.sqrt(0.5)) for value in x])
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):
        return x * distribution, distribution + x * density, np.where(density > 0, (2 - x * x) * density, 0)


def steps(found, truth):
    """How many numbers of bfloat16 lie between a result and the rounded truth."""

    def place(values):
        values = np.where(np.abs(values) < SMALLEST, 0, values).astype(ml_dtypes.bfloat16)
        integers = values.view(np.int16).astype(np.int64)
        return np.where(integers < 0, -(integers & 0x7FFF), integers)

    return np.abs(place(np.asarray(found).astype(np.float64)) - place(truth))


def slopes(x):
    return jax.vjp(gelu, x)[1](jnp.ones_like(x))[0]


def test_value_and_derivative_are_within_one_rounding(numbers):
    value, derivative, _ = exact(numbers)
    results = jax.jit(lambda x: (gelu(x), slopes(x)))(jnp.asarray(numbers))
    for found, truth in zip(results, (value, derivative), strict=True):
        assert found.dtype == jnp.bfloat16
        distance = steps(found, truth)
        assert distance.max() <= 1
        assert np.mean(distance == 0) > 0.99


def test_the_second_derivative_in_both_modes(numbers):
    _, _, curvature = exact(numbers)
    x = jnp.asarray(numbers)
    in_reverse = jax.jit(lambda x: jax.vjp(slopes, x)[1](jnp.ones_like(x))[0])(x)
    forward = jax.jit(lambda x: jax.jvp(slopes, (x,), (jnp.ones_like(x),))[1])(x)
    for found in (in_reverse, forward):
        np.testing.assert_allclose(np.asarray(found, np.float64), curvature, rtol=2**-7, atol=2**-12)


def test_what_is_not_finite_stays_so():
    found = gelu(jnp.asarray([jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16))
    assert not jnp.isfinite(found).any()


def test_float32_is_that_of_jax():
    x = jnp.linspace(-8, 8, 1001)
    assert jnp.array_equal(gelu(x), jax.nn.gelu(x, approximate=False))
    assert gelu(x).dtype == jnp.float32
