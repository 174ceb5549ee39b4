"""The TPU attention kernel is the reference, interpreted on any device; and is what a mesh of TPUs runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from starflow_jax.kernels import Causal, FrameWindow, Full, attention_tpu, reference
from starflow_jax.kernels.tiling import blocks

# float32 sums of a few hundred weights in another order.
TOLERANCE = 2e-5


def inputs(count: int, heads: int = 1, kv_heads: int = 1):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(1, heads, count, 64), (1, kv_heads, count, 64), (1, kv_heads, count, 64), (1, heads, count, 64)]
    query, key, value, weight = (jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))
    return query / 8, key, value, weight


@pytest.mark.parametrize("count", [1, 100, 880, 1136, 1152, 18736])
def test_blocks_cover_a_sequence_with_little_to_spare(count):
    block, padded = blocks(count)
    assert block % 128 == 0 and padded % block == 0 and padded >= count
    assert block <= 1024 and padded - count < max(128, 0.05 * count)


@pytest.mark.parametrize(("rule", "heads", "kv_heads"), [(Full(), 1, 1), (FrameWindow(4, 50, 2, 2), 2, 1)])
def test_forward_is_the_reference(rule, heads, kv_heads):
    query, key, value, _ = inputs(204, heads, kv_heads)
    expected = reference.attention(query, key, value, visibility=rule)
    found = jax.jit(functools.partial(attention_tpu.attention, visibility=rule, interpret=True))(query, key, value)
    assert jnp.max(jnp.abs(found - expected)) < TOLERANCE


@pytest.mark.parametrize("rule", [Causal(), FrameWindow(4, 50, 2, 2)])
def test_gradients_are_those_of_the_reference(rule):
    *arrays, weight = inputs(304)

    def loss(attention):
        return lambda *arrays: jnp.sum(attention(*arrays, visibility=rule) * weight)

    expected = jax.jit(jax.grad(loss(reference.attention), (0, 1, 2)))(*arrays)
    kernel = functools.partial(attention_tpu.attention, interpret=True)
    found = jax.jit(jax.grad(loss(kernel), (0, 1, 2)))(*arrays)
    for a, b in zip(expected, found, strict=True):
        assert jnp.max(jnp.abs(a - b)) < TOLERANCE * max(1.0, float(jnp.max(jnp.abs(a))))
