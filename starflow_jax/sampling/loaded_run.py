"""Loads a trained model for sampling."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sampling.latent_shapes import RunAutoencoder, autoencoder_for
from starflow_jax.sampling.model_folder import is_run, load_model_folder
from starflow_jax.sampling.sample_requests import RunRequest
from starflow_jax.sharding.layout import Layout, tree_layout
from starflow_jax.solvers import AnySolver, reads_estimates
from starflow_jax.training import load_run
from starflow_jax.training.inverse.inverse_folder import LoadedInverse, load_inverse


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model.

    Attributes:
      workdir: the folder of the run, which may hold a calibration.
      config: the experiment, with the decoder and the text encoder that sampling uses.
      params: the parameters of the flow, as `flows.parameters.split` gives them.
      step: the training step of the checkpoint.
      ema: whether the exponential moving average of the parameters was requested.
    """

    workdir: Path
    config: ExperimentConfig
    params: Params = dataclasses.field(repr=False)
    step: int
    ema: bool = True

    @property
    def flow(self) -> Flow:
        """The flow as a module, which shares the arrays of `params`."""
        return merge(abstract(self.config.flow, tree_layout(self.params))[0], self.params)

    @functools.cached_property
    def autoencoder(self) -> RunAutoencoder | None:
        """The autoencoder that decodes samples, read once; None for a model of pixels.

        Raises:
          ValueError: see `autoencoder_for`.
        """
        return autoencoder_for(self.config)

    @functools.cached_property
    def learned_inverse(self) -> LoadedInverse:
        """The learned inverse of the run, read once, on the devices of `params`.

        Raises:
          ValueError: see `load_inverse`.
        """
        return load_inverse(self.workdir, self.config, tree_layout(self.params))

    def learned_for(self, solver: AnySolver) -> LearnedParams | None:
        """The learned inverse if `solver` starts from its estimates, else None; ValueError as `learned_inverse`."""
        return self.learned_inverse.params if reads_estimates(solver) else None


def open_run(
    request: RunRequest,
    *,
    layout: Layout | None = None,
    adapt: Callable[[ExperimentConfig], ExperimentConfig] | None = None,
) -> Run:
    """Loads a trained model.

    Args:
      request: names the model.
      layout: the devices to spread the parameters over; None for one device.
      adapt: changes the configuration, such as `config.sample`; the flow must stay as it is.

    Raises:
      RequestError: `quantise` for a model whose weights are stored in another way.
      ValueError: there is no such run or model folder, it is damaged, or its parts do not fit together; or Qwix is not
        installed (see `load_run`).
    """
    workdir, decoder, text_encoder = request.workdir, request.decoder, request.text_encoder
    if request.model is not None and is_run(request.model):
        workdir = request.model  # its configuration names the frozen models
    elif request.model is not None:
        folder = load_model_folder(request.model)
        workdir = folder.flow
        decoder = decoder or folder.autoencoder.with_scale
        text_encoder = text_encoder or folder.text_encoder.path
    assert workdir is not None  # RunRequest checks it
    config, _, params, step = load_run(
        workdir, ema=request.ema, layout=layout, step=request.step, quantise=request.quantise
    )
    if adapt is not None:
        config = adapt(config)
    if decoder is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, decoder=str(decoder)))
    run = Run(workdir, with_text_encoder(config, text_encoder), params, step, request.ema)
    named = config.data.decoder or config.data.autoencoder
    # Read here, so that an autoencoder that cannot decode the latents is refused before anything is sampled.
    check(named is None or run.autoencoder is not None, f"decoder {named} must be an autoencoder")
    return run


def with_text_encoder(config: ExperimentConfig, path: Path | None) -> ExperimentConfig:
    """The experiment with the folder `path` as its `data.text_encoder`; unchanged for None.

    Raises:
      ValueError: the experiment reads no captions, or reads them as words of a vocabulary.
    """
    if path is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text_encoder=str(path)))
