"""On a CPU, attention at a traced offset reads the filled part of the cache only, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.kernels.attention import Causal, CausalFrames, attention
from starflow_jax.kernels.attention.api import _describe
from starflow_jax.kernels.attention.call import Bounds
from starflow_jax.kernels.attention.reference import _cache_lengths
from starflow_jax.kernels.kernel_choice import Target

SLOTS, QUERIES, HEADS, DIM = 300, 5, 2, 8


def naive(rule, query, key, value, offset):
    """The definition, in float64, of one kv head."""
    rows, columns = offset + np.arange(QUERIES), np.arange(SLOTS)
    visible = np.asarray(rule.mask(jnp.asarray(rows)[:, None], jnp.asarray(columns)[None]))
    logits = np.where(visible, query.astype(np.float64) @ key[0].astype(np.float64).T, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value[0].astype(np.float64)


@pytest.mark.parametrize("rule", [Causal(), CausalFrames(text=70, frame=10, window=2)], ids=["causal", "frames"])
def test_every_offset_gives_the_definition(rule):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(HEADS, QUERIES, DIM)).astype(np.float32)
    caches = rng.normal(size=(2, 3, 1, 1, SLOTS, DIM)).astype(np.float32)
    run = jax.jit(lambda q, k, v, offset, layer: attention(q, k, v, visibility=rule, offset=offset, layer=layer))
    for offset in (0, 58, 59, 60, 120, 187, SLOTS - QUERIES):
        for layer in (0, 2):
            found = run(query[None], *caches, offset, layer)[0]
            np.testing.assert_allclose(found, naive(rule, query, *caches[:, layer, 0], offset), atol=2e-6)
    assert run._cache_size() == 1


def test_what_lies_behind_is_not_read():
    """Slots of later branches may hold anything, even values that are not finite."""
    query, cache = jnp.ones((1, 1, QUERIES, DIM)), jnp.ones((1, 1, SLOTS, DIM)).at[:, :, 64:].set(jnp.nan)
    run = jax.jit(lambda offset: attention(query, cache, cache, visibility=Causal(), offset=offset))
    np.testing.assert_allclose(run(3), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "slots, platform, offset, lengths",
    [
        (300, "cpu", None, [64, 128, 192, 256, 300]),
        (480, "cpu", None, [96, 192, 288, 384, 480]),
        (127, "cpu", None, [127]),
        (300, "cpu", 4, [300]),
        (300, "tpu", None, [300]),
    ],
)
def test_lengths(slots, platform, offset, lengths):
    query, cache = jnp.zeros((1, 1, QUERIES, DIM)), jnp.zeros((1, 1, slots, DIM))
    call = _describe(query, cache, cache, Causal(), Target(platform), Bounds(offset, None, None))
    assert _cache_lengths(call) == lengths
