"""The layer norm: in bfloat16 one pass over its input gives the exact norm of that input to one rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from starflow_jax.nn.linear import LayerNorm


def exact(x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0, -100.0])
def test_bfloat16_is_as_exact_as_its_input(mean):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(8, 512)) + mean).astype(ml_dtypes.bfloat16)
    truth = exact(x.astype(np.float64))
    found = np.asarray(jax.jit(LayerNorm(512))(jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(found, truth, rtol=2**-8, atol=2**-10)


@pytest.mark.parametrize("value", [0.0, 300.0])
def test_a_constant_row_becomes_zero_with_finite_gradients(value):
    x = jnp.full((2, 512), value, jnp.bfloat16)
    out, pull = jax.vjp(LayerNorm(512), x)
    assert jnp.all(jnp.abs(out) < 1e-2)
    assert jnp.isfinite(pull(jnp.ones_like(out))[0]).all()


def test_float32_subtracts_the_mean_first():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 512)) + 1000, jnp.float32)
    np.testing.assert_allclose(LayerNorm(512)(x), exact(np.asarray(x, np.float64)), atol=2e-4)
