"""A cache whose slots are divided over devices gives the samples of one device, and only chunks are moved."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from fake_devices import run_on_eight_devices

from starflow_jax.kernels.attention import Causal
from starflow_jax.kernels.attention.api import partial_attention
from starflow_jax.kernels.attention.reference import UNSEEN
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.nn.divided_cache import cache_cuts, divides_slots
from starflow_jax.sharding.layout import Layout


def over(**sizes):
    return Layout(SimpleNamespace(shape={"slices": 1, "data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | sizes))


def test_slots_are_divided_where_heads_are_not():
    by_heads = (None, ("slices", "data", "fsdp"), ("tensor", "sequence"), None, None)
    assert cache_cuts(over(tensor=2, sequence=4), 8, "auto") == by_heads
    assert cache_cuts(over(tensor=2, sequence=4), 12, "auto")[2:] == ("tensor", "sequence", None)
    assert cache_cuts(over(tensor=2, sequence=4), 8, "slots")[2:] == ("tensor", "sequence", None)
    assert cache_cuts(over(tensor=4, sequence=2), 2, "auto")[2:] == (None, "sequence", None)
    assert not divides_slots(None, 8, "slots") and not divides_slots(over(tensor=16), 8, "slots")


def test_kernels_that_give_no_weight_of_a_part_are_refused():
    query, cache = jnp.zeros((1, 2, 4, 64), jnp.bfloat16), jnp.zeros((1, 1, 2, 128, 64), jnp.bfloat16)
    tpu, gpu = Target("tpu", "TPU v5 lite"), Target("gpu", "NVIDIA H200", "9.0")
    for target, layer, there in ((tpu, 0, "4 queries on a tpu"), (gpu, None, "4 queries on a gpu")):
        keys = cache if layer is not None else cache[0]
        options = {"visibility": Causal(), "offset": -2, "layer": layer, "target": target}
        with pytest.raises(ValueError, match=f"longer chunks alone, got {there}"):
            partial_attention(query, keys, keys, implementation="pallas", **options)
        out, lse = partial_attention(query, keys, keys, **options)
        # Two queries come before the part, and see none of it.
        assert out.shape == query.shape and (lse[..., :2] == UNSEEN).all() and (lse[..., 2] == 0).all()


@pytest.mark.slow
def test_one_sample_on_eight_devices_is_that_of_one():
    found = json.loads(run_on_eight_devices("divided_inverse_on_eight_devices.py"))
    for case in found.values():
        assert case["error"] < 1e-6
        assert case["iterations"][0] == case["iterations"][1]
    # One evaluation of the image's deep block: for each of two layers and two chunks, the packed queries, keys and
    # values of a chunk's tokens are gathered, and the outputs of all intervals change places with their tokens.
    moved = found["an image, Jacobi"]["moved"]
    deep = [[kind, shape, times] for kind, shape, times in moved if len(shape) > 3 and times == 4]
    assert deep == [["all-gather", [2, 8, 2, 3, 20], 4], ["all-to-all", [8, 2, 2, 1, 1, 21], 4]]
    # No cache moves: over 8 intervals its number of slots is a multiple of 64.
    assert all(not any(size and size % 64 == 0 for size in shape) for _, shape, _ in moved)
