"""The device layout of a run: built from its configuration and checked against the flow and the data."""

from __future__ import annotations

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.kernels.kernel_choice import CUDNN_PLATFORM, KERNEL_PLATFORMS, device_target
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import check_fit, make_layout
from starflow_jax.training.step.frozen_autoencoder import Frozen
from starflow_jax.training.step.inputs import latent_shape


def run_layout(config: ExperimentConfig, source: Source, encoder: Frozen | None = None) -> Layout | None:
    """The layout of `config.mesh` over all devices of all processes; None for one device.

    Raises:
      ValueError: mesh axes whose product is not the number of devices, a flow or batch that does not divide over them,
        or `flow.kernels` "pallas" on a platform without Pallas kernels, or "cudnn" on one without cuDNN or in float32.
    """
    layout = make_layout(config.mesh)
    platform = device_target().platform
    check(
        config.flow.kernels != "pallas" or platform in KERNEL_PLATFORMS,
        f"flow.kernels must be 'auto' or 'xla' on a {platform}, which has no Pallas kernels, got 'pallas'",
    )
    check(
        config.flow.kernels != "cudnn" or platform == CUDNN_PLATFORM,
        f"flow.kernels must be 'auto' or 'xla' on a {platform}, which has no cuDNN, got 'cudnn'",
    )
    check(
        config.flow.kernels != "cudnn" or config.flow.dtype == "bfloat16",
        f"flow.kernels 'cudnn' needs flow.dtype 'bfloat16', got {config.flow.dtype!r}",
    )
    for size in {config.train.batch_size, *(size for _, _, size in config.train.curriculum)}:
        check_fit(layout, config.flow, size, config.train.accumulate)
    for component in components_of(source):
        pixels = example_spec(component.source)["image"][0]
        shape = latent_shape(None if encoder is None else encoder.autoencoder, pixels)
        given = component.batch_size
        field = "train.batch_size" if given is None else f"batch_size of {component.source.name}"
        check_fit(layout, config.flow, given or config.train.batch_size, config.train.accumulate, shape, field=field)
    return layout
