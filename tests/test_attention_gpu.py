"""The GPU's attention kernels: their own code on threads passes the shared checks; lowering for CUDA; the choice."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import warpgroups
from attention_suite import AttentionSuite, Case, inputs

from starflow_jax.kernels import kernel_choice
from starflow_jax.kernels.attention import (
    Causal,
    CausalFrames,
    FrameWindow,
    Full,
    attention,
    gpu_backward,
    gpu_blocks,
    gpu_forward,
    ranges,
)
from starflow_jax.kernels.attention.api import chosen
from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Residuals
from starflow_jax.kernels.attention.gpu import GPUAttention
from starflow_jax.kernels.cuda_libraries import CudaLibraries
from starflow_jax.kernels.kernel_choice import Target

HOPPER = Target("gpu", "NVIDIA H200", "9.0")


@pytest.mark.usefixtures("shapes_unchecked")  # the interpreter takes arrays of NumPy
class TestOnThreads(AttentionSuite):
    """The kernels' code, with threads and numpy in the place of Pallas (`warpgroups`)."""

    target, tiles = HOPPER, gpu_blocks.Blocks(64, 64, 2, 64, 64, 2)
    cases = [  # noqa: RUF012 (pytest reads it)
        Case(Causal(), 200, 200, length=200, heads=1, kv_heads=1, dtype="bfloat16"),
        Case(Causal(70), 130, 300, offset=30, length=290, kv_heads=1, dtype="bfloat16"),
        Case(FrameWindow(10, 50, 2, 1), 260, 260, length=260, heads=1, kv_heads=1, dtype="bfloat16"),
        Case(CausalFrames(10, 50, 0), 5, 260, offset=200, length=205, heads=1, kv_heads=1, dtype="bfloat16"),
        Case(Causal(), 3, 140, length=0, heads=1, kv_heads=1, dtype="bfloat16"),  # no key is visible
    ]

    def run(self, case, query, key, value, do):
        call = AttentionCall(
            case.rule, HOPPER, case.heads, case.kv_heads, case.queries, case.slots, case.dim,
            dtypes=3 * (query.dtype,), offset=case.offset, length=case.length, tiles=self.tiles,
        )  # fmt: skip
        assert GPUAttention().supports(call)
        query, key, value, do = (np.asarray(a) for a in (query, key, value, do))
        with pytest.MonkeyPatch.context() as monkeypatch:
            on_threads(monkeypatch, type(case.rule))
            bounds = Bounds(case.offset, case.length)
            out, lse = GPUAttention().forward(call, query, key, value, bounds)
            return out, *GPUAttention().backward(call, Residuals(query, key, value, out, lse), do, bounds)


def on_threads(monkeypatch, rule):
    """Puts threads and numpy in the place of Pallas and JAX in the kernels' modules, and in the bounds of a rule."""
    fake = SimpleNamespace(lax=warpgroups.LAX, ShapeDtypeStruct=jax.ShapeDtypeStruct)
    numbers = SimpleNamespace(**{name: getattr(np, name) for name in dir(np) if not name.startswith("_")})
    numbers.bfloat16 = ml_dtypes.bfloat16
    for module in (gpu_blocks, gpu_forward, gpu_backward):
        monkeypatch.setattr(module, "pl", warpgroups.PALLAS)
        monkeypatch.setattr(module, "plgpu", warpgroups.MOSAIC)
        monkeypatch.setattr(module, "jax", fake)
        monkeypatch.setattr(module, "jnp", numbers)
    monkeypatch.setattr(ranges, "jnp", numbers)
    bounds = rule.bounds
    monkeypatch.setattr(rule, "bounds", lambda self, query, xp=np: bounds(self, query, np))


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
    """Any number of keys: they are padded to whole lines."""

    def loss(query, key, value, offset):
        out = attention(query, key, value, visibility=rule, offset=offset, implementation="pallas", target=HOPPER)
        return jnp.sum(out.astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((2, h, n, dim), jnp.bfloat16) for h, n in [(4, queries), *2 * [(2, slots)]]]
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = jax.export.export(gradient, platforms=["cuda"])(*shapes, jax.ShapeDtypeStruct((), jnp.int32))
    assert lowered.mlir_module().count("stablehlo.custom_call @mosaic_gpu") == 3


def test_the_kernels_run_on_request_and_say_what_they_need():
    query, key, value, _ = inputs(200, 200, 1, 1, 64, "bfloat16")
    attend = functools.partial(attention, query, key, value, visibility=Causal())
    assert attend(target=HOPPER).shape == query.shape  # by XLA: no GPU has run the kernels yet
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 9.0 \(Hopper\), and this is 8.0"):
        attend(target=Target("gpu", "NVIDIA A100", "8.0"), implementation="pallas")
    insist = functools.partial(attention, query, visibility=Causal(), target=HOPPER, implementation="pallas")
    with pytest.raises(ValueError, match=r"needs caches of a multiple of 8 slots, at least 128, and there are 133"):
        insist(jnp.zeros((2, 1, 1, 133, 64), "bfloat16"), jnp.zeros((2, 1, 1, 133, 64), "bfloat16"), layer=0)
    with pytest.raises(ValueError, match=r"must be kernels.attention.gpu_blocks.Blocks, got 128"):
        insist(key, value, tiles=128)


def test_a_toolchain_that_miscompiles_masks_is_refused():
    """Before any compute. Without a mask nothing is refused, and neither is a version that is not known."""
    query, key, value, _ = inputs(200, 200, 1, 1, 64, "bfloat16")

    def select(rule, toolchain, **options):
        target = Target("gpu", "NVIDIA H100", "9.0", CudaLibraries(toolchain))
        return chosen(query, key, value, visibility=rule, target=target, **options)

    sentence = r"ptxas of those between miscompiles causal masks, and this is 12\."
    masks = [Causal(), Causal(20), FrameWindow(10, 50, 2, 1), CausalFrames(8, 60, 0)]
    for toolchain in (12080, 12081, 12090):
        for rule in masks:
            with pytest.raises(ValueError, match=sentence):
                select(rule, toolchain, implementation="pallas")
            assert select(rule, toolchain) == "xla"
        assert select(Full(), toolchain, implementation="pallas") == "pallas"
    for toolchain in (0, 12060, 12091, 13000):
        assert all(select(rule, toolchain, implementation="pallas") == "pallas" for rule in masks)
    target = Target("gpu", "NVIDIA H100", "9.0", CudaLibraries(12081))
    with pytest.raises(ValueError, match=sentence + r"8\.1"):
        attention(query, key, value, visibility=Causal(), target=target, implementation="pallas")


def test_the_log_suggests_no_kernel_that_cannot_run(caplog):
    """The warning on an older GPU does not suggest the kernel."""
    caplog.set_level("INFO", logger="starflow_jax.kernels.kernel_choice")
    kernel_choice._log_once.cache_clear()
    query, key, value, _ = inputs(200, 200, 1, 1, 64, "bfloat16")
    attention(query, key, value, visibility=Causal(), target=Target("gpu", "NVIDIA A100", "8.0"))
    assert "needs a GPU of compute capability 9.0" in caplog.text and "selects it" not in caplog.text
