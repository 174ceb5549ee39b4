"""The devices of a run, as its configuration asks for them, checked against what is trained."""

from __future__ import annotations

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.kernels.choice import KERNEL_PLATFORMS, target_of
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import check_fit, make_layout
from starflow_jax.training.step.frozen_autoencoder import Frozen
from starflow_jax.training.step.inputs import latent_shape


def run_layout(config: ExperimentConfig, source: Source, encoder: Frozen | None = None) -> Layout | None:
    """The layout that `config.mesh` asks for over all devices of all processes; None for one device.

    Raises:
      ValueError: axes that do not multiply to the devices, a flow or batch that does not divide over them, or kernels
        that are insisted on where there are none.
    """
    layout = make_layout(config.mesh)
    platform = target_of().platform
    check(
        config.flow.kernels != "pallas" or platform in KERNEL_PLATFORMS,
        f"flow.kernels must be 'auto' or 'xla' on a {platform}, which has no Pallas kernels, got 'pallas'",
    )
    for size in {config.train.batch_size, *(size for _, _, size in config.train.curriculum)}:
        check_fit(layout, config.flow, size, config.train.accumulate)
    for component in components_of(source):
        pixels = example_spec(component.source)["image"][0]
        shape = latent_shape(None if encoder is None else encoder.autoencoder, pixels)
        own = component.batch_size
        where = "train.batch_size" if own is None else f"batch_size of {component.source.name}"
        check_fit(layout, config.flow, own or config.train.batch_size, config.train.accumulate, shape, field=where)
    return layout
