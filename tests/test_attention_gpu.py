"""The GPU's attention kernels: their own code on threads is the specification; they lower for CUDA; who gets them."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import warpgroups
from test_attention_tpu import TOLERANCE, inputs

from starflow_jax.kernels import choice
from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, attention, ranges, reference
from starflow_jax.kernels.attention import gpu as attention_gpu
from starflow_jax.kernels.attention import gpu_backward as attention_gpu_backward
from starflow_jax.kernels.attention.schedule import Problem
from starflow_jax.kernels.choice import Target

HOPPER = Target("gpu", "NVIDIA H200", "9.0")
BLOCKS = attention_gpu.Blocks(64, 64, 2, 64, 64, 2)

CASES = [  # rule, queries, slots, offset, length, heads, key heads
    (Causal(), 200, 200, 0, 200, 1, 1),
    (Causal(70), 130, 300, 30, 290, 2, 1),
    (FrameWindow(10, 50, 2, 1), 260, 260, 0, 260, 1, 1),
    (CausalFrames(10, 50, 0), 5, 260, 200, 205, 1, 1),
    (Causal(), 3, 140, 0, 0, 1, 1),  # nothing is seen
]


@pytest.fixture
def on_threads(monkeypatch):
    """The kernels' modules, with threads and numpy in the place of Pallas."""
    fake = SimpleNamespace(lax=warpgroups.LAX, ShapeDtypeStruct=jax.ShapeDtypeStruct)
    numbers = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("_")})
    numbers.bfloat16 = ml_dtypes.bfloat16
    for module in (attention_gpu, attention_gpu_backward):
        monkeypatch.setattr(module, "pl", warpgroups.PALLAS)
        monkeypatch.setattr(module, "plgpu", warpgroups.MOSAIC)
        monkeypatch.setattr(module, "jax", fake)
        monkeypatch.setattr(module, "jnp", numbers)
    monkeypatch.setattr(ranges, "jnp", numbers)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(on_threads, monkeypatch, case):
    rule, count, slots, offset, length, heads, kv_heads = case
    bounds = type(rule).bounds
    monkeypatch.setattr(type(rule), "bounds", lambda self, query, xp=np: bounds(self, query, np))
    query, key, value, weight = (np.asarray(a) for a in inputs(count, slots, heads, kv_heads, 64, "bfloat16"))
    problem = Problem(rule, count, slots, count)
    options = {"problem": problem, "tiles": BLOCKS}
    out, sums = attention_gpu.forward(query, key, value, offset, length, **options)
    found = attention_gpu_backward.backward(query, key, value, out, sums, weight, offset, length, **options)
    monkeypatch.undo()
    plain = functools.partial(reference.attention, visibility=rule, offset=offset, length=length)
    expected, pullback = jax.vjp(plain, *(jnp.asarray(a, jnp.float32) for a in (query, key, value)))
    expected = (expected, *pullback(jnp.asarray(weight, jnp.float32)))
    for ours, theirs in zip((out, *found), expected, strict=True):
        assert ours.shape == theirs.shape and np.all(np.isfinite(ours.astype(np.float32)))
        error = np.max(np.abs(ours.astype(np.float32) - theirs))
        assert error <= TOLERANCE["bfloat16"] * max(1.0, float(jnp.max(jnp.abs(theirs))))


@pytest.mark.parametrize(
    ("rule", "queries", "slots", "dim"),
    [
        (Causal(128), 300, 1152, 64),
        (Causal(), 1153, 1153, 128),
        (FrameWindow(10, 50, 2, 1), 260, 260, 64),
        (Causal(), 1, 33646, 64),
        (Causal(), 5, 5, 64),
    ],
    ids=str,
)
def test_the_kernels_lower_for_cuda(rule, queries, slots, dim):
    """Any number of keys: those that fill no line are padded."""

    def loss(query, key, value, offset):
        out = attention(query, key, value, visibility=rule, offset=offset, implementation="pallas", target=HOPPER)
        return jnp.sum(out.astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((2, h, n, dim), jnp.bfloat16) for h, n in [(4, queries), *2 * [(2, slots)]]]
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = jax.export.export(gradient, platforms=["cuda"])(*shapes, jax.ShapeDtypeStruct((), jnp.int32))
    assert lowered.mlir_module().count("stablehlo.custom_call @mosaic_gpu") == 3


def test_the_kernels_have_to_be_asked_for_and_say_what_they_need():
    query, key, value, _ = inputs(200, 200, 1, 1, 64, "bfloat16")
    attend = functools.partial(attention, query, key, value, visibility=Causal())
    assert attend(target=HOPPER).shape == query.shape  # by XLA: nobody has run the kernels yet
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 9.0 \(Hopper\), and this is 8.0"):
        attend(target=Target("gpu", "NVIDIA A100", "8.0"), implementation="pallas")
    insist = functools.partial(attention, query, visibility=Causal(), target=HOPPER, implementation="pallas")
    with pytest.raises(ValueError, match=r"needs caches of a multiple of 8 slots, at least 128, and there are 133"):
        insist(jnp.zeros((2, 1, 1, 133, 64), "bfloat16"), jnp.zeros((2, 1, 1, 133, 64), "bfloat16"), layer=0)
    with pytest.raises(ValueError, match=r"must be kernels.attention_gpu.Blocks, got 128"):
        insist(key, value, tiles=128)


def test_a_gpu_that_has_no_kernel_is_told_so(caplog):
    """Not that the kernel may be asked for."""
    caplog.set_level("INFO", logger="starflow_jax.kernels.choice")
    choice._say.cache_clear()
    query, key, value, _ = inputs(200, 200, 1, 1, 64, "bfloat16")
    attention(query, key, value, visibility=Causal(), target=Target("gpu", "NVIDIA A100", "8.0"))
    assert "needs a GPU of compute capability 9.0" in caplog.text and "asks for it" not in caplog.text
