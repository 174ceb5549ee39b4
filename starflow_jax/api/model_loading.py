"""Reading a trained model."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.choices import Quantisation
from starflow_jax.hub.model_opening import open_model
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sharding.layout import Layout


def from_pretrained(
    path: Path | str,
    *,
    ema: bool = True,
    step: int | None = None,
    layout: Layout | None = None,
    quantise: Quantisation | None = None,
) -> Run:
    """Reads a trained model.

    Args:
      path: the folder or the address of a run (`starflow train`, `starflow port`), of an assembled model folder with an
        autoencoder and a text encoder (`starflow port --assemble`), or of a published model (`starflow publish`).
        Models on the Hugging Face Hub have addresses hf://ORG/NAME[@REVISION], read with the extra `hub`.
      ema: whether to take the exponential moving average of the parameters, where the run has one.
      step: the checkpoint; None for the newest.
      layout: the devices to spread the parameters over; None for one device.
      quantise: how to store the weights of a float32 model in memory, "int8", "fp8", "int4" or "int8-activations", with
        the extra `quantise`; None for what they are. All likelihoods are then those of the quantised model.

    Returns:
      The model.

    Raises:
      RequestError: `quantise` for a model whose weights are stored in another way.
      ValueError: `path` contains no model, or a file in it is damaged or missing; or Qwix is not installed, which
        `quantise` needs, and every model that is stored as "int8-activations".
      StoreError: the store of an address, or the Hub, is not reached.
    """
    return open_model(path, ema=ema, step=step, layout=layout, quantise=quantise)
