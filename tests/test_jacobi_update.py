"""The Jacobi update: what its specification promises, and that each kernel, interpreted, is the specification."""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import IMAGE, normal, random_flow
from test_solvers_accelerated import MIX, toy

from starflow_jax.flows import Guidance
from starflow_jax.flows.affine import Affine
from starflow_jax.flows.prediction import Prediction
from starflow_jax.kernels.choice import Target
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update import gpu as jacobi_update_gpu
from starflow_jax.kernels.jacobi_update import tpu as jacobi_update_tpu
from starflow_jax.kernels.jacobi_update.reference import Reading, specification
from starflow_jax.solvers import Jacobi, inverse

RELEASED = Reading("softplus", 4.0, "ratio")
READINGS = {
    "starflow": RELEASED,
    "unguided": Reading("softplus", 0.0),
    "tarflow": Reading("exp", 0.0, "ab", annealed=300),
    "clipped exp": Reading("exp", 2.0, "a"),
    "unit": Reading("unit", 4.0, "b"),
}


def given(samples: int, tokens: int, channels: int, reading: Reading, dtype=jnp.float32, spread: float = 0.5):
    """Arguments of an update; sample 0 has no committed prefix, sample 1 has and ends early, sample 2 has settled."""
    keys = jax.random.split(jax.random.key(tokens), 3)
    wide = channels if reading.scale == "unit" else 2 * channels
    out = spread * jax.random.normal(keys[0], (reading.halves * samples, tokens, wide))
    z, x = (jax.random.normal(key, (samples, tokens, channels)) for key in keys[1:])
    span = jnp.asarray([[0, tokens], [1, max(tokens - 1, 1)], [3, 3]][:samples], jnp.int32)
    return out.astype(dtype), z, x, span, jnp.float32(1.5), jnp.int32(7)


@functools.cache
def interpreted(name: str, reading: Reading):
    """A kernel as the interpreter of its platform runs it, compiled."""
    if name == "tpu":
        kernel = functools.partial(jacobi_update_tpu.update, reading=reading, interpret=True)
    else:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        kernel = functools.partial(jacobi_update_gpu.update, reading=reading, interpret=InterpretGPUParams())
    return jax.jit(lambda out, z, x, span, weight, first: kernel(out, z, x, span, weight, first))


# The specification


def test_a_token_outside_its_span_stays_and_is_not_counted():
    arrays = given(3, 9, 4, RELEASED)
    _, _, x, span, *_ = arrays
    new, sums = specification(*arrays, RELEASED)
    free, _ = specification(*arrays[:3], jnp.asarray([[0, 9]] * 3), *arrays[4:], RELEASED)
    for b, (begin, end) in enumerate(span.tolist()):
        np.testing.assert_array_equal(new[b, :begin], x[b, :begin])
        np.testing.assert_array_equal(new[b, end:], x[b, end:])
        np.testing.assert_array_equal(new[b, begin:end], free[b, begin:end])
        part = np.asarray(new[b, begin:end], np.float64)
        expected = [((part - x[b, begin:end]) ** 2).sum(), (part**2).sum()]
        np.testing.assert_allclose(sums[b], expected, rtol=1e-5)


def test_a_prediction_is_its_mean_and_scale():
    out, z, x, span, weight, first = given(3, 9, 4, RELEASED)
    found = Prediction(out, weight, first, RELEASED)
    for a, b in zip(found.update(z, x, span), found.affine.update(z, x, span), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(found.inverse(z), found.affine.mean + found.affine.scale * z)


def test_guidance_of_a_prediction_is_that_of_its_halves():
    out, z, *_ = given(3, 9, 4, RELEASED)
    parts = [Prediction(part, 0.0, 0, Reading("softplus", 4.0)).affine for part in jnp.split(out, 2)]
    expected: Affine = Guidance(1.5).combine(parts[0], parts[1], jnp.arange(9), 9)
    np.testing.assert_allclose(Prediction(out, 1.5, 0, RELEASED).inverse(z), expected.inverse(z), rtol=1e-6)


# The kernels


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
class TestKernels:
    """Every kernel against the specification."""

    def agrees(self, platform, reading, *arrays):
        expected, expected_sums = specification(*arrays, reading)
        new, sums = interpreted(platform, reading)(*arrays)
        # A few roundings of float32, relative to what is added up; both compute in float32 from the same output.
        size = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=2e-6 * size)
        np.testing.assert_allclose(sums, expected_sums, rtol=2e-5, atol=1e-6)
        x, span = np.asarray(arrays[2]), arrays[3].tolist()
        for b, (begin, end) in enumerate(span):
            np.testing.assert_array_equal(new[b, :begin], x[b, :begin])
            np.testing.assert_array_equal(new[b, end:], x[b, end:])

    @pytest.mark.parametrize("name", READINGS)
    def test_is_the_specification(self, platform, name):
        """33 tokens: ragged, and a last tile that overlaps the one before; float32."""
        self.agrees(platform, READINGS[name], *given(3, 33, 4, READINGS[name]))

    def test_in_bfloat16_with_many_tiles(self, platform, monkeypatch):
        monkeypatch.setattr(jacobi_update_tpu, "_BLOCK_BYTES", 2**15)
        monkeypatch.setattr(jacobi_update_gpu, "_TILE_VALUES", 512)
        reading = dataclasses.replace(RELEASED, soft_clip=3.0)  # its own compiled program
        self.agrees(platform, reading, *given(2, 300, 12, reading, jnp.bfloat16))

    def test_far_off_scales_keep_their_precision(self, platform):
        reading = dataclasses.replace(RELEASED, soft_clip=0.0)
        self.agrees(platform, reading, *given(1, 33, 4, reading, spread=8.0))

    def test_every_element_is_written_whatever_was_there(self, platform):
        """NaN in what moves, in the other samples' outputs and in what stays goes nowhere else."""
        out, z, x, span, *rest = given(3, 33, 4, RELEASED)
        index = jnp.arange(33)
        moves = ((index >= span[:, :1]) & (index < span[:, 1:]))[:, :, None]
        clean, sums = specification(out, z, x, span, *rest, RELEASED)
        poisoned = jnp.where(moves, jnp.nan, x)
        still = jnp.concatenate([moves, moves])
        new, measured = interpreted(platform, RELEASED)(jnp.where(still, out, jnp.nan), z, poisoned, span, *rest)
        np.testing.assert_allclose(new, clean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(measured[:, 1], sums[:, 1], rtol=2e-5)
        assert np.isnan(measured[:2, 0]).all() and measured[2, 0] == 0  # the old estimate was NaN where it moved

    def test_iterates_to_the_same_answer(self, platform):
        """A solver that runs the kernel takes the same iterations to the same tokens."""

        @dataclasses.dataclass(frozen=True)
        class Run(Prediction):
            def update(self, z, x, span):
                kernel = interpreted(platform, self.reading)
                return kernel(self.out, z, x, span, jnp.float32(self.weight), jnp.int32(self.first))

        reading, plain = Reading("softplus", 4.0), toy({1: MIX}, power=0.3)

        def predict(wrap):
            def read(previous, first, cache):
                affine, cache = plain(previous, first, cache)
                out = jnp.concatenate([jnp.full_like(affine.mean, -0.5), affine.mean], axis=-1)
                return wrap(out, 0.0, first, reading), cache

            return read

        z, known = normal((2, 70, 2)), jnp.zeros((2, 1, 2))
        solver = Jacobi(block=64, growth=1, per_sample=True, start="noise", tolerance=1e-6, max_iterations=40)
        cache = jnp.zeros((2, 70 + 64, 2))
        runs = [
            jax.jit(lambda z, w=w: solver(predict(w), z, known, cache, start=0, frame=70))(z) for w in (Prediction, Run)
        ]
        np.testing.assert_allclose(runs[0].x, runs[1].x, atol=1e-5)
        np.testing.assert_array_equal(runs[0].report.iterations, runs[1].report.iterations)


def test_tiles_cover_the_tokens_and_fit():
    for samples, tokens, channels in [(1, 64, 4), (16, 1023, 12), (3, 1590, 48), (1, 33390, 48), (5, 1, 192)]:
        rows, length = jacobi_update_tpu.tile(samples, tokens, channels, RELEASED)
        assert samples % rows == 0 and (length == tokens or length % 128 == 0)
        assert 4 * rows * max(length, 128) * max(channels, 8) * 7 <= 2 * 2**20
        if tokens > 1:
            length, _ = jacobi_update_gpu.tile(tokens, channels)
            assert length <= tokens and length * channels % 128 == 0


# The choice


def test_a_case_that_no_kernel_covers_is_said(caplog):
    arrays = given(1, 9, 4, Reading())
    hopper, older = Target("gpu", "NVIDIA H200", "9.0"), Target("gpu", "NVIDIA A100", "8.0")
    covered = given(1, 64, 4, RELEASED)[::2][:2]
    assert jacobi_update.chosen(*covered, hopper, "pallas") == jacobi_update.chosen(*covered, Target("tpu")) == "pallas"
    assert jacobi_update.chosen(*covered, hopper) == "xla"  # until one has run it
    with caplog.at_level(logging.INFO):
        assert jacobi_update.chosen(arrays[0], arrays[2], older) == "xla"
    assert "it needs a GPU of compute capability 9.0 or 10.0, got 8.0; XLA computes it." in caplog.text
    with pytest.raises(ValueError, match="it needs at least 32 tokens of 4 channels, got 9"):
        jacobi_update.update(*arrays, reading=Reading(), target=hopper, implementation="pallas")
    with pytest.raises(ValueError, match="not for cpu"):
        jacobi_update.update(*arrays, reading=Reading(), target=Target("cpu"), implementation="pallas")


# The compilers


@pytest.mark.parametrize("reading", [RELEASED, READINGS["tarflow"]], ids=["starflow", "tarflow"])
def test_lowers_for_cuda_without_a_gpu(reading):
    from jax import export

    arrays = given(3, 70, 12, reading)
    run = jax.jit(functools.partial(jacobi_update_gpu.update, reading=reading))
    module = export.export(run, platforms=["cuda"])(*arrays).mlir_module()
    assert "mosaic_gpu" in module
    # The estimate is replaced in place: it comes back as an alias of an operand.
    assert "output_operand_alias" in module


def compiled_for(name: str, reading: Reading, arrays, implementation) -> tuple[str, int]:
    """The program of an update on one TPU chip, and the bytes of arguments that are reused for results."""
    from starflow_jax.core.config import MeshConfig
    from starflow_jax.costs.chips import topology
    from starflow_jax.kernels.choice import target_of
    from starflow_jax.planning.ahead_of_time import tpu_layout

    device = tpu_layout(topology(name), MeshConfig()).mesh.devices.flat[0]
    there = jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there) for a in arrays]
    options = {"reading": reading, "target": target_of(device), "implementation": implementation}
    run = jax.jit(functools.partial(jacobi_update.update, **options), donate_argnums=2)
    program = run.lower(*shapes).compile()
    return program.as_text(), program.memory_analysis().alias_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 4), (64, 4), (512, 48), (1590, 48), (33390, 48), (1023, 192)])
def test_compiles_for_tpus(chip, tokens, channels):
    """No block overflows the vector memory, x is replaced in place, and unasked it is the kernel that runs."""
    pytest.importorskip("libtpu")
    reading, dtype = (READINGS["tarflow"], jnp.bfloat16) if tokens == 512 else (RELEASED, jnp.float32)
    arrays = jax.eval_shape(lambda: given(2, tokens, channels, reading, dtype))
    text, reused = compiled_for(chip, reading, arrays, None)
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


def test_solvers_run_the_specification_here(monkeypatch):
    """On this machine's CPU a guided flow goes through the one specification, whatever the solver."""
    seen = []

    def spy(*arguments):
        seen.append(arguments[0].shape)
        return specification(*arguments)

    monkeypatch.setattr(jacobi_update, "specification", spy)
    text, null = normal((2, 3, 6), 3), normal((1, 3, 6), 4)
    flow = random_flow(IMAGE)
    solve = functools.partial(inverse, solver=Jacobi.whole(max_iterations=2), guidance=Guidance(1.5, null))
    jax.eval_shape(lambda z: solve(flow, z, text).x, normal((2, 3, 4, 2)))
    assert (4, 12, 4) in seen and all(shape[0] in (2, 4) for shape in seen)
