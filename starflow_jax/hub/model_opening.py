"""A path or an address as the folder of a run or a model folder; a published folder becomes a run once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.storage.addresses import address_text
from starflow_jax.core.storage.copies import local_path, one_step, without_optimizer
from starflow_jax.core.storage.hub_addresses import HubAddress, is_hub_address
from starflow_jax.core.storage.hub_copies import fetch_hub
from starflow_jax.core.storage.places import HUB, storage_folder
from starflow_jax.hub.published_files import is_published
from starflow_jax.hub.published_folder import Published, public_config, read_published
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.model_folder import MODEL_FILE
from starflow_jax.sampling.sample_requests import RunRequest
from starflow_jax.sharding.layout import Layout
from starflow_jax.tensor_formats.tensor_opening import open_tensors
from starflow_jax.training.checkpoints.port_requests import PortRequest, port_tensors


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
      path: the folder of a run, or a model folder.
    """

    path: Path

    @property
    def run(self) -> Path:
        """The folder of the run of the flow."""
        return self.path / "flow" if (self.path / MODEL_FILE).is_file() else self.path


def open_model(
    path: Path | str,
    *,
    ema: bool = True,
    step: int | None = None,
    layout: Layout | None = None,
    decoder: Path | None = None,
    text_encoder: Path | None = None,
    quantise: Quantisation | None = None,
) -> Run:
    """Reads a trained model: a run, a model folder or a published folder, by its path or address.

    Args:
      path: see `local_model`; ema, step, decoder, text_encoder, quantise: see `RunRequest`.
      layout: the devices to spread the parameters over; None for one device.

    Raises:
      ValueError: there is none, or a file of it is damaged or missing.
      StoreError: its store or the Hub is not reached.
    """
    found = local_model(path, step=step, ema=ema).path
    is_model = (found / MODEL_FILE).is_file()
    request = RunRequest(
        workdir=None if is_model else found,
        model=found if is_model else None,
        step=step,
        ema=ema,
        decoder=decoder,
        text_encoder=text_encoder,
        quantise=quantise,
    )
    return open_run(request, layout=layout)


def local_model(path: Path | str, *, step: int | None = None, all_steps: bool = False, ema: bool = True) -> LocalModel:
    """The model at a path or an address, as a folder that is read like any other.

    Args:
      path: the folder of a run, a model folder or a published folder, or the address of one.
      step: of a run on the Hub, the checkpoint to copy; None for the newest.
      all_steps: whether to copy all checkpoints.
      ema: whether the moving average of the parameters will be read.

    Raises:
      ValueError: there is no such model, its weights do not fit its experiment, or a published model
        holds the moving average of its parameters alone and other ones are asked for.
      StoreError: its store or the Hub is not reached.
    """
    if not is_hub_address(path):
        folder = local_path(path, without_optimizer)
        return LocalModel(converted(folder, _local_place(folder), None, ema=ema) if is_published(folder) else folder)

    def select(names: list[str]) -> Iterable[str]:
        return filter(without_optimizer, names) if all_steps else one_step(names, step)

    copy = fetch_hub(HubAddress.parse(address_text(path)), select)
    if copy.path.is_dir() and is_published(copy.path):
        place = _hub_place(copy.address, copy.path)
        return LocalModel(converted(copy.path, place, copy.address, ema=ema))
    return LocalModel(copy.path)


def converted(folder: Path, place: Path, address: HubAddress | None, *, ema: bool = True) -> Path:
    """The run of a published folder, which is made at `place` if it is not there, complete or not at all.

    Its configuration names the frozen models where they are, and otherwise no folder or bucket outside of the working
    folder: whoever wrote it does not choose what is read here.

    Raises:
      ValueError: the weights do not fit the experiment, the folder is not a published model, or it holds the moving
        average of the parameters alone and `ema` is False.
    """
    published = read_published(folder)
    check(
        ema or not published.averaged,
        f"{address or folder} holds the exponential moving average of the parameters alone: it cannot be read without "
        "it (ema=False, --no-ema)",
    )
    if place.is_dir():
        return place
    _check_size(published)
    origin = None if address is None else str(address)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        step = published.step or 0
        port_tensors(PortRequest(published.weights, _with_frozen(published), place, origin=origin, step=step))
    except (OSError, ValueError):
        if not place.is_dir():  # else another process made it meanwhile
            raise
    return place


def _check_size(published: Published) -> None:
    """Raises ValueError for more blocks or layers than tensors, of which no shapes need to be made."""
    flow, tensors = published.config.flow, len(open_tensors(published.weights))
    layers = flow.layers_per_block if isinstance(flow.layers_per_block, tuple) else (flow.layers_per_block,)
    for name, value in (("num_blocks", flow.num_blocks), ("layers_per_block", max(layers))):
        check(
            value <= tensors,
            f"flow.{name} of {published.path} is {value:,}, and its weights have {tensors:,} tensors",
        )


def _with_frozen(published: Published) -> ExperimentConfig:
    """The experiment with the paths of the frozen models that lie beside."""
    config = public_config(published.config)
    data = config.data
    if published.autoencoder is not None:
        data = dataclasses.replace(data, decoder=str(published.autoencoder.with_scale))
    if published.text_encoder is not None:
        data = dataclasses.replace(data, text_encoder=str(published.text_encoder.path))
    return dataclasses.replace(config, data=data)


def _hub_place(address: HubAddress, folder: Path) -> Path:
    """The place of the run of a commit; it depends on the path of the folder, which the configuration names."""
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return storage_folder() / HUB / "runs" / address.repo / f"{address.revision}-{key}"


def _local_place(folder: Path) -> Path:
    """The place of the run of a folder, another one after any change of its files."""
    status = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    facts = [str(folder.absolute()), *(f"{name} {one.st_size} {one.st_mtime_ns}" for name, one in status)]
    return storage_folder() / HUB / "folders" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
