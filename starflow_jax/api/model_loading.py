"""Reading a trained model."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.model_folder import MODEL_FILE
from starflow_jax.sampling.sample_requests import RunRequest
from starflow_jax.sharding.layout import Layout


def from_pretrained(
    path: Path | str, *, ema: bool = True, step: int | None = None, layout: Layout | None = None
) -> Run:
    """Reads a trained model.

    Args:
      path: the folder or the address of a run (`starflow train`, `starflow port`), or of an assembled model folder
        with an autoencoder and a text encoder (`starflow port --assemble`).
      ema: whether to take the exponential moving average of the parameters, where the run has one.
      step: the checkpoint; None for the newest.
      layout: the devices to spread the parameters over; None for one device.

    Returns:
      The model.

    Raises:
      ValueError: `path` contains neither a run nor a model folder, or a file in it is damaged or missing.
    """
    path = local_path(path, without_optimizer)
    if (path / MODEL_FILE).is_file():
        return open_run(RunRequest(model=path, ema=ema, step=step), layout=layout)
    return open_run(RunRequest(workdir=path, ema=ema, step=step), layout=layout)
