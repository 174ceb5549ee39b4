"""The autoencoder, weights, data and devices of a training of an autoencoder, opened and checked before any compute."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import Loader, Source
from starflow_jax.data.pipeline.batches import train_loader
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.models.autoencoders import load_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.reconstruction.lpips import SMALLEST, read_lpips
from starflow_jax.reconstruction.update import Objective
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.training.step.pixel_source import check_pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """The inputs of the training of an autoencoder, besides its training state.

    Attributes:
      objective: experiment, autoencoder and discriminator, static under `jit`.
      params: the autoencoder's initial or stored parameters.
      perceptual: weights of LPIPS, None where the loss has no perceptual term.
      source: training images; held_out: float32 [n, H, W, C] in [-1, 1], reconstructed at the end.
      layout: of the devices, None for one device.
    """

    objective: Objective
    params: Params
    perceptual: Params | None
    source: Source
    held_out: np.ndarray
    layout: Layout | None

    @classmethod
    def from_experiment(cls, experiment: AutoencoderExperiment) -> Setup:
        """Opens the models and data that the experiment names.

        Raises:
          ValueError: files that are missing or damaged, or parts that do not fit together.
        """
        autoencoder, stored = _open_autoencoder(experiment)
        objective = Objective(experiment, autoencoder)
        layout = make_layout(experiment.mesh)
        _check_fit(objective, layout)
        perceptual = read_lpips(map(Path, experiment.loss.perceptual_weights)) if experiment.loss.perceptual else None
        source, held_out = (_open_images(objective, split) for split in ("train", "test"))
        params = _initial_params(autoencoder, experiment.seed) if stored is None else stored
        return cls(objective, params, perceptual, source, scaled_images(held_out, experiment.evaluate), layout)

    @property
    def experiment(self) -> AutoencoderExperiment:
        """The experiment of the objective."""
        return self.objective.experiment

    def loader(self, step: int = 0) -> Loader:
        """This process's rows of the batches, always from the first batch."""
        process = (0, 1) if self.layout is None else self.layout.share()
        return train_loader(self.source, self.experiment.train.batch_size, self.experiment.seed, process=process)

    def put(self, tree: Any) -> Any:
        """A tree of arrays on the devices where a restored tree would lie."""
        if self.layout is None:
            return jax.device_put(tree, jax.local_devices()[0])
        return jax.device_put(tree, self.layout.tree(tree))


def scaled_images(source: Source, count: int) -> np.ndarray:
    """At most `count` images at equal distances in a source, float32 [n, H, W, C] in [-1, 1]."""
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    images = np.stack([source[int(index)]["image"] for index in indices])
    return images.astype(np.float32) * np.float32(2.0 / (source.levels - 1)) - np.float32(1.0)


def _open_autoencoder(experiment: AutoencoderExperiment) -> tuple[AutoencoderKL, Params | None]:
    """The autoencoder, with its parameters where it exists already."""
    if experiment.network is not None:
        network = dataclasses.asdict(experiment.network)
        return AutoencoderKL(**network, scaling_factor=1.0, dtype=experiment.dtype), None
    assert experiment.autoencoder is not None  # AutoencoderExperiment checks it
    path = Path(experiment.autoencoder)
    autoencoder, params = load_autoencoder(path, experiment.dtype if path.is_dir() else "float32")
    if not isinstance(autoencoder, AutoencoderKL):
        kind = type(autoencoder).__name__
        raise ValueError(f"autoencoder {path} must be an AutoencoderKL to be fine-tuned, got {kind}")
    return autoencoder, params


def _open_images(objective: Objective, split: Split) -> Source:
    """The images of a split, checked to suit the autoencoder."""
    experiment, autoencoder = objective.experiment, objective.autoencoder
    # Sources take the size of their images from the configuration of a flow.
    flow = FlowConfig(autoencoder.pixel_channels, experiment.image_shape, 64, 1, 1)
    source = open_source(experiment.data, split, flow=flow)
    check_pixels(source, autoencoder.stride, autoencoder.pixel_channels)
    return source


def _check_fit(objective: Objective, layout: Layout | None) -> None:
    experiment, smallest = objective.experiment, min(objective.experiment.image_shape)
    if experiment.loss.perceptual:
        check(smallest >= SMALLEST, f"image_size must be at least {SMALLEST} for LPIPS, got {smallest}")
        channels = objective.autoencoder.pixel_channels
        check(channels in (1, 3), f"LPIPS compares images of 1 or 3 channels, got {channels}")
    if objective.discriminator is not None:
        least = objective.discriminator.smallest
        check(
            smallest >= least,
            f"image_size must be at least {least} for loss.discriminator_layers="
            f"{experiment.loss.discriminator_layers}, got {smallest}",
        )
    check(jax.process_count() == 1, f"autoencoders are trained by one process, got {jax.process_count()}")
    parts = 1 if layout is None else layout.share()[1]
    size = experiment.train.batch_size
    check(size % parts == 0, f"train.batch_size must be a multiple of mesh.data x mesh.fsdp = {parts}, got {size}")


@functools.partial(jax.jit, static_argnums=0)
def _initial_params(autoencoder: AutoencoderKL, seed: jax.Array | int) -> Params:
    return autoencoder.init(jax.random.key(seed))
