"""Attention by cuDNN: which calls it takes, the code around the library, and lowering for CUDA without a GPU."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from attention_suite import AttentionSuite, Case, inputs
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.interpreters import partial_eval
from jax.extend.core import jaxprs_in_params

from starflow_jax.kernels import kernel_choice
from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, attention
from starflow_jax.kernels.attention.api import chosen
from starflow_jax.kernels.attention.call import AttentionCall
from starflow_jax.kernels.attention.cudnn import CudnnAttention
from starflow_jax.kernels.cuda_libraries import CudaLibraries
from starflow_jax.kernels.kernel_choice import Target

LIBRARIES = CudaLibraries(toolchain=12091, cudnn=91002)
HOPPER = Target("gpu", "NVIDIA H200", "9.0", LIBRARIES)
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


class TestAroundTheLibrary(AttentionSuite):
    """With JAX's plain attention in the place of the library: order of axes, groups, scale, mask, residuals."""

    implementation, target = "cudnn", HOPPER
    cases = [  # noqa: RUF012 (pytest reads it)
        Case(Causal(), 70, 70, heads=4, kv_heads=2, dtype="bfloat16", dim=16),
    ]


# What cuDNN takes

CALL = AttentionCall(
    Causal(), HOPPER, num_heads=4, num_kv_heads=2, num_queries=300, num_slots=300, head_dim=64,
    dtypes=3 * (jnp.dtype("bfloat16"),), offset=0, length=300,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dtypes": 3 * (jnp.dtype("float16"),)}, None),
        ({"head_dim": 8}, None),
        ({"head_dim": 128, "num_heads": 1, "num_kv_heads": 1}, None),
        ({"num_queries": 2, "num_slots": 2, "length": 2}, None),
        ({"num_queries": 301, "num_slots": 301, "length": 301}, "an even number of slots, and there are 301"),
        ({"dtypes": 3 * (jnp.dtype("float32"),)}, "bfloat16 or float16, and these are float32, float32, float32"),
        ({"dtypes": (*2 * (jnp.dtype("bfloat16"),), jnp.dtype("float16"))}, "one dtype"),
        ({"head_dim": 20}, "heads of a multiple of 8 channels, at most 128, and these have 20"),
        ({"head_dim": 256}, "at most 128, and these have 256"),
        ({"rule": Causal(3)}, r"a causal mask without a prefix, and this is Causal\(text=3\)"),
        ({"rule": Full()}, "a causal mask"),
        ({"rule": FrameWindow(10, 50, 2, 1)}, "a causal mask"),
        ({"rule": CausalFrames(0, 300, 0)}, "a causal mask"),
        ({"offset": 1}, "whole sequences without a cache"),
        ({"offset": None}, "whole sequences without a cache"),  # traced
        ({"length": 299}, "whole sequences"),
        ({"length": None}, "whole sequences"),
        ({"num_queries": 299}, "whole sequences"),
        ({"stacked": True}, "whole sequences without a cache"),
        ({"tiles": 128}, "takes no block sizes, and these are 128"),
    ],
)
def test_the_calls_that_cudnn_takes(change, reason):
    support = CudnnAttention().supports(dataclasses.replace(CALL, **change))
    assert bool(support) == (reason is None)
    assert reason is None or re.search(reason, support.reason)


@pytest.mark.parametrize(
    ("capability", "cudnn", "reason"),
    [
        ("8.0", 90800, None),
        ("12.0", 90800, None),
        ("10.3", 91100, None),
        ("10.3", 91002, "needs cuDNN 9.11 or later on this GPU, and this is 9.10"),
        ("7.5", 91002, "compute capability 8.0 or later, and this is 7.5"),
        ("", 91002, "and this is unknown"),
        ("gfx942", 91002, "needs an NVIDIA GPU"),
        ("9.0", 0, "needs cuDNN and JAX's CUDA plugin, which are not installed"),
    ],
)
def test_the_gpus_that_cudnn_runs_on(capability, cudnn, reason):
    target = Target("gpu", "a GPU", capability, CudaLibraries(cudnn=cudnn))
    support = CudnnAttention().supports(dataclasses.replace(CALL, target=target))
    assert bool(support) == (reason is None)
    assert reason is None or reason in support.reason


# The choice


def test_the_default_on_gpus_is_cudnn_then_xla(caplog):
    """Kernels run where they are asked for."""
    caplog.set_level("INFO", logger="starflow_jax.kernels.kernel_choice")
    kernel_choice._log_once.cache_clear()
    query, key, value, _ = inputs(200, 200, 2, 1, 64, "bfloat16")
    select = functools.partial(chosen, query, key, value, visibility=Causal(), target=HOPPER)
    assert select() == select(implementation="cudnn") == "cudnn"
    assert not caplog.records
    assert select(implementation="xla") == "xla" and select(implementation="pallas") == "pallas"
    for options in ({"visibility": Full()}, {"offset": jnp.int32(0)}, {"target": Target("gpu", "NVIDIA H200", "9.0")}):
        assert select(**options) == "xla"
    assert "cuDNN does not compute a call of attention: it needs a causal mask without a prefix" in caplog.text
    assert select(target=Target("cpu")) == "xla" and select(target=Target("tpu", "TPU v5e")) == "pallas"
    for platform in ("cpu", "tpu"):
        with pytest.raises(ValueError, match=f"implementation='cudnn' of attention is for gpu, not for {platform}"):
            select(target=Target(platform), implementation="cudnn")
    with pytest.raises(ValueError, match=r"'cudnn' was requested. cuDNN does not .*: it needs whole sequences without"):
        attention(query, key[None], value[None], layer=0, visibility=Causal(), target=HOPPER, implementation="cudnn")


# Lowering


@pytest.fixture
def stated_version(monkeypatch):
    """JAX asks the installed cuDNN for its version when it traces a call."""
    versions = SimpleNamespace(cudnn_get_version=lambda: LIBRARIES.cudnn)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)


def lowered(function, *shapes):
    """The program for CUDA of a function."""
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(name) for name in (FORWARD, BACKWARD)]
    export = jax.export.export(jax.jit(function), platforms=["cuda"], disabled_checks=unchecked)
    return export(*shapes).mlir_module()


def calls(program, name):
    return program.count(f"custom_call @{name}(")


def shapes(heads, kv_heads, slots, dim, dtype="bfloat16"):
    return [jax.ShapeDtypeStruct((2, h, slots, dim), dtype) for h in (heads, kv_heads, kv_heads)]


def total(query, key, value, **options):
    out = attention(query, key, value, visibility=Causal(), target=HOPPER, **options)
    return jnp.sum(out.astype(jnp.float32) ** 2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "slots", "dim", "dtype"),
    [(4, 4, 33646, 64, "bfloat16"), (4, 2, 1152, 128, "bfloat16"), (1, 1, 32, 8, "float16")],
)
def test_values_and_gradients_lower_for_cuda(heads, kv_heads, slots, dim, dtype, stated_version):
    arrays = shapes(heads, kv_heads, slots, dim, dtype)
    value = lowered(total, *arrays)
    assert calls(value, FORWARD) == 1 and calls(value, BACKWARD) == 0
    gradient = lowered(jax.grad(total, (0, 1, 2)), *arrays)
    assert calls(gradient, FORWARD) >= 1 and calls(gradient, BACKWARD) == 1
    for program in (value, gradient):
        assert '"mask_type": "CAUSAL"' in program.replace("\\22", '"')
        assert f"{slots}x{slots}x" not in program


def passes(jaxpr):
    """The calls of cuDNN in a program and in those inside it, without dead code."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    alive, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in alive.eqns:
        if equation.primitive.name.startswith("dot_product_attention"):
            yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from passes(inner)


def test_the_backward_pass_needs_no_second_forward_pass(stated_version):
    """What it needs is saved."""
    program = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*shapes(4, 2, 64, 32))
    assert list(passes(program)) == ["dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"]


def test_a_gradient_of_a_gradient_lowers_for_cuda(stated_version):
    """As losses need that contain a score; the second derivative is the reference's."""

    def loss(query, key, value):
        return sum(jnp.sum(g.astype(jnp.float32) ** 2) for g in jax.grad(total, (0, 1, 2))(query, key, value))

    assert calls(lowered(jax.grad(loss, (0, 1, 2)), *shapes(2, 1, 24, 16)), BACKWARD) >= 1


@pytest.mark.slow
def test_a_training_step_of_a_flow_runs_on_cudnn(stated_version, monkeypatch):
    """Every block of a flow in bfloat16, in the scan over its layers; solvers, which read a cache, do not."""
    from starflow_jax.core.config import load_config
    from starflow_jax.flows import Flow, parameters
    from starflow_jax.nn import attention as layer

    monkeypatch.setattr(layer, "layout_target", lambda layout: HOPPER)
    overrides = ["flow.kernels=cudnn", "flow.dtype=bfloat16"]
    config = load_config(f"{Path(__file__).parents[1]}/experiments/digits.py:tiny", overrides).flow
    definition, params = parameters.split(Flow(config, jax.random.key(0)))

    def loss(params, x, labels):
        encoded = parameters.merge(definition, params).forward(x, labels)
        return jnp.sum(encoded.z**2) - jnp.sum(encoded.logdet)

    program = lowered(jax.grad(loss), params, jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
    assert calls(program, BACKWARD) == config.num_blocks
