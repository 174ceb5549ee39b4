"""A trained model: its configuration and parameters, read from a run or from an assembled model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sampling.model_folder import MODEL_FILE, load_model_folder
from starflow_jax.sharding.layout import Layout, layout_of
from starflow_jax.training.checkpoints.manager import load_run
from starflow_jax.training.step.frozen_autoencoder import decoded_by, load_encoder
from starflow_jax.training.step.frozen_text import FrozenText, load_text


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model.

    Attributes:
      path: the folder that it was read from.
      config: the experiment. In a model folder, the autoencoder and the text encoder are those of the folder.
      params: the parameters of the flow, as `flows.parameters.split` gives them.
      step: the training step of the checkpoint.
      text: the text encoder with its parameters; None for a model that reads no captions.
    """

    path: Path
    config: ExperimentConfig
    params: Params = dataclasses.field(repr=False)
    step: int
    text: FrozenText | None = dataclasses.field(default=None, repr=False)

    @property
    def flow(self) -> Flow:
        """The flow as a module, which shares the arrays of `params`."""
        return merge(abstract(self.config.flow, layout_of(self.params))[0], self.params)


def from_pretrained(
    path: Path | str, *, ema: bool = True, step: int | None = None, layout: Layout | None = None
) -> Run:
    """Reads a trained model.

    Args:
      path: the folder of a run (`starflow train`, `starflow port`), or an assembled model folder with an autoencoder
        and a text encoder (`starflow port --assemble`).
      ema: whether to take the exponential moving average of the parameters, where the run has one.
      step: the checkpoint; None for the newest.
      layout: the devices to spread the parameters over; None for one device.

    Returns:
      The model.

    Raises:
      ValueError: `path` holds neither a run nor a model folder, or a file in it is damaged or missing.
    """
    path = Path(path)
    if not (path / MODEL_FILE).is_file():
        config, _, params, step = load_run(path, ema=ema, layout=layout, step=step)
        load_encoder(config)  # latents that could not be decoded are refused before anything is drawn
    else:
        folder = load_model_folder(path)
        config, _, params, step = load_run(folder.flow, ema=ema, layout=layout, step=step)
        config = decoded_by(config, folder.autoencoder.with_scale)
        data = dataclasses.replace(config.data, text_encoder=str(folder.text_encoder.path))
        config = dataclasses.replace(config, data=data)
    text = load_text(config)
    return Run(path, config, params, step, None if text is None else text.over(None))
