"""The rule that chooses between a kernel and the reference."""

import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from starflow_jax.kernels import kernel_choice
from starflow_jax.kernels.cuda_libraries import CudaLibraries
from starflow_jax.kernels.kernel_choice import Support, Target, choose, device_target

OLD_GPU = Support("needs compute capability 9.0, and this is 8.0")
SUPPORT = {"tpu": Support(), "gpu": OLD_GPU, "cpu": Support()}


@pytest.mark.parametrize(
    ("implementation", "platform", "expected"),
    [
        (None, "tpu", "pallas"),
        (None, "cpu", "xla"),
        (None, "gpu", "xla"),
        ("xla", "tpu", "xla"),
        ("pallas", "tpu", "pallas"),
    ],
)
def test_a_kernel_runs_where_one_covers_the_case(implementation, platform, expected):
    assert choose("attention", implementation, Target(platform), SUPPORT[platform]) == expected


def test_insisting_fails_with_the_reason(shapes_unchecked):
    with pytest.raises(ValueError, match=r"needs compute capability 9.0, and this is 8.0"):
        choose("attention", "pallas", Target("gpu"), OLD_GPU)
    with pytest.raises(ValueError, match=r"kernels for gpu and tpu, not for cpu"):
        choose("attention", "pallas", Target("cpu"), Support())
    with pytest.raises(ValueError, match=r"must be 'xla', 'pallas', 'cudnn' or None, got 'triton'"):
        choose("attention", "triton", Target("cpu"), Support())


def test_a_fallback_is_logged_once(caplog):
    support = Support("needs heads of 64, and these have 20 (of a test)")
    with caplog.at_level(logging.INFO, logger="starflow_jax.kernels.kernel_choice"):
        for _ in range(3):
            choose("attention", None, Target("gpu"), support)
        choose("attention", None, Target("cpu"), support)
    assert [record.getMessage() for record in caplog.records] == [
        "The gpu kernel of attention is not used: it needs heads of 64, and these have 20 (of a test); XLA computes it."
    ]


def test_the_target_is_the_device_that_programs_run_on():
    assert device_target().platform == device_target(jax.devices()[0]).platform == jax.default_backend()


def test_a_gpu_is_described_with_its_libraries(monkeypatch, shapes_unchecked):
    """Only a GPU is: what is installed beside another device does not matter."""
    libraries = CudaLibraries(12091, 91002)
    monkeypatch.setattr(kernel_choice, "cuda_libraries", lambda: libraries)
    gpu = SimpleNamespace(platform="cuda", device_kind="NVIDIA H200", compute_capability="9.0")
    assert device_target(gpu) == Target("gpu", "NVIDIA H200", "9.0", libraries)
    assert device_target(jax.devices("cpu")[0]).libraries == CudaLibraries()


@pytest.mark.parametrize(
    ("implementation", "platform", "cudnn", "expected"),
    [
        (None, "gpu", Support(), "cudnn"),
        ("cudnn", "gpu", Support(), "cudnn"),
        ("pallas", "gpu", Support(), "pallas"),
        ("xla", "gpu", Support(), "xla"),
        (None, "gpu", OLD_GPU, "pallas"),
        (None, "cpu", Support(), "xla"),
        (None, "tpu", Support(), "pallas"),
        ("cudnn", "gpu", None, "pallas"),  # an operation that cuDNN does not have
        ("cudnn", "cpu", None, "xla"),
    ],
)
def test_cudnn_comes_first_on_gpus(implementation, platform, cudnn, expected):
    assert choose("attention", implementation, Target(platform), Support(), cudnn) == expected


def test_insisting_on_cudnn_fails_with_the_reason():
    for platform in ("cpu", "tpu"):
        with pytest.raises(ValueError, match=rf"implementation='cudnn' of attention is for gpu, not for {platform}"):
            choose("attention", "cudnn", Target(platform), Support(), Support())
    with pytest.raises(ValueError, match=r"cuDNN does not compute a call of attention: it needs compute capability 9"):
        choose("attention", "cudnn", Target("gpu"), Support(), OLD_GPU)


@pytest.mark.parametrize(
    ("kernels", "asked"), [("auto", None), ("xla", "xla"), ("pallas", "pallas"), ("cudnn", "cudnn")]
)
def test_a_flow_passes_its_configured_implementation_on(kernels, asked, monkeypatch):
    """To attention and to the update, in every block that has layers."""
    from starflow_jax.core.config import load_config
    from starflow_jax.flows import Flow
    from starflow_jax.nn import attention as layer

    config = load_config(f"{Path(__file__).parents[1]}/experiments/digits.py:tiny", [f"flow.kernels={kernels}"]).flow
    flow, implementations = Flow(config, jax.random.key(0)), []

    def attend(query, key, value, *, implementation, **_):
        implementations.append(implementation)
        return query

    monkeypatch.setattr(layer, "attention", attend)
    x, labels = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32)
    jax.eval_shape(lambda: flow.forward(x, labels).z)
    assert implementations == [asked] * config.num_blocks
    assert all(block.proj_out.compute.kernels == asked for block in flow.blocks)
