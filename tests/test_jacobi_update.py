"""The Jacobi update: every implementation passes the shared checks; what a prediction is; the choice; the compilers."""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jacobi_update_suite import HEADS, RELEASED, JacobiUpdateSuite, operands
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from random_flows import IMAGE, normal, random_flow

from starflow_jax.flows import Guidance
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.flows.prediction import Prediction
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update import gpu, tpu
from starflow_jax.kernels.jacobi_update.reference import Operands, ReferenceUpdate, UpdateCall
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.solvers import Jacobi, inverse

HOPPER = Target("gpu", "NVIDIA H200", "9.0")


class TestReference(JacobiUpdateSuite):
    implementation, target = ReferenceUpdate(), Target("cpu")


class TestTPU(JacobiUpdateSuite):
    implementation, target, interpret = tpu.TPUUpdate(), Target("tpu"), True


class TestGPU(JacobiUpdateSuite):
    implementation, target, interpret = gpu.GPUUpdate(), HOPPER, InterpretGPUParams()


# Predictions


def test_a_prediction_is_its_mean_and_scale():
    out, z, x, span, weight, first = operands(3, 9, 4, RELEASED)
    prediction = Prediction(out, weight, first, RELEASED)
    for a, b in zip(prediction.update(z, x, span), prediction.affine.update(z, x, span), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(prediction.inverse(z), prediction.affine.mean + prediction.affine.scale * z)


def test_guidance_of_a_prediction_is_that_of_its_halves():
    out, z, *_ = operands(3, 9, 4, RELEASED)
    parts = [Prediction(part, 0.0, 0, AffineHead("softplus", 4.0)).affine for part in jnp.split(out, 2)]
    expected = Guidance(1.5).combine(parts[0], parts[1], jnp.arange(9), 9)
    np.testing.assert_allclose(Prediction(out, 1.5, 0, RELEASED).inverse(z), expected.inverse(z), rtol=1e-6)


# The kernels


def test_tiles_cover_the_tokens_and_fit():
    for samples, tokens, channels in [(1, 64, 4), (16, 1023, 12), (3, 1590, 48), (1, 33390, 48), (5, 1, 192)]:
        rows, length = tpu.tile(samples, tokens, channels, RELEASED)
        assert samples % rows == 0 and (length == tokens or length % 128 == 0)
        assert 4 * rows * max(length, 128) * max(channels, 8) * 7 <= 2 * 2**20
        if tokens > 1:
            length, _ = gpu.tile(tokens, channels)
            assert length <= tokens and length * channels % 128 == 0


# The choice


def test_the_log_says_why_a_kernel_is_not_used(caplog):
    head, older = AffineHead(), Target("gpu", "NVIDIA A100", "8.0")
    arrays, covered = operands(1, 9, 4, head), operands(1, 64, 4, RELEASED)
    chosen = functools.partial(jacobi_update.chosen, covered.out, covered.x, head=RELEASED)
    assert chosen(target=HOPPER, implementation="pallas") == chosen(target=Target("tpu")) == "pallas"
    assert chosen(target=HOPPER) == "xla"  # until a GPU has run it
    with caplog.at_level(logging.INFO):
        assert jacobi_update.chosen(arrays.out, arrays.x, head=head, target=older) == "xla"
    assert "it needs a GPU of compute capability 9.0 or 10.0, got 8.0; XLA computes it." in caplog.text
    with pytest.raises(ValueError, match="it needs at least 32 tokens of 4 channels, got 9"):
        jacobi_update.update(*arrays, head=head, target=HOPPER, implementation="pallas")
    with pytest.raises(ValueError, match="not for cpu"):
        jacobi_update.update(*arrays, head=head, target=Target("cpu"), implementation="pallas")


# The compilers


@pytest.mark.parametrize("head", [RELEASED, HEADS["tarflow"]], ids=["starflow", "tarflow"])
def test_lowers_for_cuda_without_a_gpu(head):
    from jax import export

    arrays = operands(3, 70, 12, head)
    call = UpdateCall.from_arrays(arrays.out, arrays.x, head, HOPPER)
    run = jax.jit(functools.partial(gpu.GPUUpdate().update, call))
    module = export.export(run, platforms=["cuda"])(arrays).mlir_module()
    assert "mosaic_gpu" in module
    # The estimate is replaced in place: it comes back as an alias of an operand.
    assert "output_operand_alias" in module


def compiled_for(name: str, head: AffineHead, arrays, implementation) -> tuple[str, int]:
    """The program of an update on one TPU chip, and the bytes of arguments that are reused for results."""
    from starflow_jax.core.config import MeshConfig
    from starflow_jax.costs.chips import topology
    from starflow_jax.kernels.kernel_choice import device_target
    from starflow_jax.planning.ahead_of_time import tpu_layout

    device = tpu_layout(topology(name), MeshConfig()).mesh.devices.flat[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arrays]
    options = {"head": head, "target": device_target(device), "implementation": implementation}
    run = jax.jit(functools.partial(jacobi_update.update, **options), donate_argnums=2)
    program = run.lower(*shapes).compile()
    return program.as_text(), program.memory_analysis().alias_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 4), (64, 4), (512, 48), (1590, 48), (33390, 48), (1023, 192)])
def test_compiles_for_tpus(chip, tokens, channels):
    """No block overflows the vector memory, x is replaced in place, and unasked it is the kernel that runs."""
    pytest.importorskip("libtpu")
    head, dtype = (HEADS["tarflow"], jnp.bfloat16) if tokens == 512 else (RELEASED, jnp.float32)
    arrays = jax.eval_shape(lambda: operands(2, tokens, channels, head, dtype))
    text, reused = compiled_for(chip, head, arrays, None)
    assert text.count('custom_call_target="tpu_custom_call"') == 1
    assert reused >= 4 * 2 * tokens * channels  # more where the layout pads


@pytest.mark.slow
def test_a_guided_stage_of_a_flow_runs_the_kernel_on_tpus():
    pytest.importorskip("libtpu")
    from test_plan import SMALL, STILL, V5E

    from starflow_jax.core.config import MeshConfig
    from starflow_jax.planning.ahead_of_time import tpu_layout
    from starflow_jax.planning.programs import inverse_program

    for mesh, batch in ((MeshConfig(), 1), (MeshConfig(data=2, tensor=2), 2)):
        program = inverse_program(SMALL, dataclasses.replace(STILL, batch=batch), tpu_layout(V5E, mesh))
        text = program.function.trace(*program.arguments).lower().compile().as_text()
        # One update; the layers are one scan, so one attention.
        assert text.count('custom_call_target="tpu_custom_call"') == 2
        assert "jacobi_update" in text and "attention_decode" in text


def test_solvers_run_the_reference_on_a_cpu(monkeypatch):
    """A guided flow on a CPU goes through the one reference, whatever the solver."""
    shapes = []

    class Spy(ReferenceUpdate):
        def update(self, call: UpdateCall, operands: Operands):
            shapes.append(operands.out.shape)
            return super().update(call, operands)

    monkeypatch.setattr(jacobi_update, "ReferenceUpdate", Spy)
    text, null = normal((2, 3, 6), 3), normal((1, 3, 6), 4)
    flow = random_flow(IMAGE)
    solve = functools.partial(inverse, solver=Jacobi.whole(max_iterations=2), guidance=Guidance(1.5, null))
    jax.eval_shape(lambda z: solve(flow, z, text).x, normal((2, 3, 4, 2)))
    assert (4, 12, 4) in shapes and all(shape[0] in (2, 4) for shape in shapes)
