"""Writes the folder of a published model from a run or a model folder, and uploads it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from starflow_jax.core.amounts import size_text
from starflow_jax.core.atomic_writing import replacing_folder, write_text
from starflow_jax.core.choices import Transfer, choices
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.checks import check, check_choice, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.outline import Outline
from starflow_jax.core.request_errors import require
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.hub_addresses import HubAddress
from starflow_jax.flows.parameters import abstract, count, unquantised
from starflow_jax.hub.model_card import Card, last_metrics
from starflow_jax.hub.published_folder import CARD_FILE, FROZEN, PUBLISHED_FILE, description, public_config
from starflow_jax.hub.run_files import frozen_files, run_files
from starflow_jax.hub.upload import check_login, check_repository, upload
from starflow_jax.models.autoencoders import kept_autoencoder
from starflow_jax.porting.tensor_names import entries
from starflow_jax.sampling.model_folder import (
    MODEL_FILE,
    Part,
    autoencoder_part,
    is_run,
    load_model_folder,
    part_entry,
    part_target,
    text_encoder_part,
)
from starflow_jax.tensor_formats.tensor_writing import INDEX_FILE, STEM, shard_sizes
from starflow_jax.training.checkpoints.finished_run import existing_step, holds_average, run_config
from starflow_jax.training.checkpoints.port_requests import check_portable
from starflow_jax.training.checkpoints.ported import write_torch_shards
from starflow_jax.training.checkpoints.workdir import CONFIG_FILE

PublishedForm = Literal["safetensors", "run"]
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_GIGABYTE = 10**9


@dataclasses.dataclass(frozen=True)
class PublishRequest:
    """A request to publish a model.

    Attributes:
      license: identifier of the licence on the Hub, such as "apache-2.0", or "other".
      workdir: folder of a run; model: instead of it, a folder with a flow and its frozen models.
      to: ORG/NAME on the Hub as an address; out: a new folder, which is then left there. One of them, or both.
      step: of the checkpoint; None for the newest.
      ema: whether to use the exponential moving average of the parameters, where the checkpoint has one.
      form: "safetensors" under the names of the PyTorch originals, or "run", the files as they are, without the state
        of the optimizer: for flows that the originals do not have, and with the calibration and the learned inverse.
      flow_only: whether to leave out frozen models, whose licences may be others.
      shard_size: gigabytes of a file of parameters at most.
      notes: Markdown text on the limits of the model for its card.
      private: whether the repository is private, which has to be a new one or private already.
      revision: the branch that is written; None for "main".
      message: of the commit; None for "Publish NAME".

    Raises:
      RequestError, ValueError: a field is out of range, or fields are mutually exclusive.
    """

    license: str
    workdir: Path | None = None
    model: Path | None = None
    to: HubAddress | None = None
    out: Path | None = None
    step: int | None = None
    ema: bool = True
    form: PublishedForm = "safetensors"
    flow_only: bool = False
    shard_size: float = 5.0
    notes: str = ""
    private: bool = False
    revision: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        require(
            (self.model is None) != (self.workdir is None),
            "give either {workdir}, the folder of a run, or {model}, a folder with a flow and its frozen models",
        )
        require(
            self.to is not None or self.out is not None, "give {to}, an address on the Hub, or {out}, a folder, or both"
        )
        require(
            _LICENSE.fullmatch(self.license) is not None,
            '{license} must be the identifier of a licence, such as apache-2.0, mit or "other", got {0!r}',
            self.license[:80],
        )
        if self.step is not None:
            check_integer("step", self.step, minimum=0)
        check_choice("form", self.form, choices(PublishedForm))
        require(
            0 < self.shard_size <= 1000, "{shard_size} must be above 0 and at most 1000, got {0:g}", self.shard_size
        )
        if self.to is None:
            for name in ("private", "revision", "message"):
                require(not getattr(self, name), f"{{{name}}} goes with {{to}}, an address on the Hub")
        require(
            self.revision is None or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}", self.revision) is not None,
            "{revision} must be the name of a branch, got {0!r}",
            self.revision,
        )
        require(self.message is None or self.message.strip() != "", "{message} must not be empty")


@dataclasses.dataclass(frozen=True)
class Publication:
    """What was published.

    Attributes:
      files: name and bytes of every file; step: of the checkpoint; name: of the experiment.
      address: on the Hub with its commit; None where nothing was uploaded.
      out: the folder; None where it was a temporary one.
    """

    files: Mapping[str, int]
    step: int
    name: str
    address: HubAddress | None
    out: Path | None


@dataclasses.dataclass(frozen=True)
class _Source:
    """What is published: the folder of a run, its experiment, a step, and frozen models by name."""

    flow: Path
    config: ExperimentConfig
    step: int
    parts: Mapping[str, Part]


def publish(request: PublishRequest, results: tuple[tuple[str, ...], ...] = ()) -> Publication:
    """Writes the folder of a published model, and uploads it in one commit.

    Args:
      request: the request.
      results: a table of likelihoods with its header for the model card.

    Raises:
      ValueError: there is no such run or checkpoint, a frozen model is missing, the originals have no such flow, or the
        Hub refuses.
      StoreError: the Hub is not reached.
      OSError: the folder cannot be written.
    """
    source = _source(request)
    if request.to is not None:
        check_login(request.to)
        check_repository(request.to, private=request.private, revision=request.revision)
    if request.out is not None:
        return _publish(request, source, request.out.absolute(), "copy", results)
    with tempfile.TemporaryDirectory(prefix="starflow-publish-") as folder:
        return _publish(request, source, Path(folder) / "model", "link", results)


def publication_outline(request: PublishRequest) -> Outline:
    """What `publish` would read and write; no call is made, and nothing is written.

    Raises:
      ValueError: see `publish`.
    """
    source = _source(request)
    if request.to is not None:
        check_login(request.to)
    files = _planned(request, source)
    where = " and ".join(str(place) for place in (request.out, request.to) if place is not None)
    written = [(name, size_text(size)) for name, size in files.items()]
    figures = {"to": None if request.to is None else str(request.to), "step": source.step, "files": files}
    read = (("run", str(source.flow)), ("step", f"{source.step:,}"))
    total = f"{len(files)} files, about {size_text(sum(files.values()))}"
    return Outline(read, (), ((where, total), *written), figures)


def _publish(
    request: PublishRequest, source: _Source, folder: Path, how: Transfer, results: tuple[tuple[str, ...], ...]
) -> Publication:
    check(not folder.exists() or not any(folder.iterdir()), f"out {folder} must be a new or an empty folder")
    with replacing_folder(folder) as temporary:
        if request.form == "run":
            _copy_run(request, source, temporary, how)
        else:
            _write_weights(request, source, temporary, how)
        write_text(temporary / CARD_FILE, _card(request, source, results).text())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    address = None
    if request.to is not None:
        message = request.message or f"Publish {source.config.name}"
        address = upload(folder, request.to, private=request.private, revision=request.revision, message=message)
    return Publication(files, source.step, source.config.name, address, request.out)


def _write_weights(request: PublishRequest, source: _Source, folder: Path, how: Transfer) -> None:
    """Writes the experiment, the tensors and the frozen models."""
    size = int(request.shard_size * _GIGABYTE)
    write_torch_shards(folder, source.flow, source.config, source.step, ema=request.ema, shard_bytes=size)
    write_text(folder / CONFIG_FILE, to_json(public_config(source.config)))
    for name, part in source.parts.items():
        for inner in frozen_files(part.path):
            _place(part.path / inner, folder / part_target(name, part) / inner, how)
    write_text(folder / PUBLISHED_FILE, _description(request, source))


def _description(request: PublishRequest, source: _Source) -> str:
    averaged = request.ema and holds_average(source.flow, source.step)
    return description(source.step, averaged, {name: part_entry(name, part) for name, part in source.parts.items()})


def _copy_run(request: PublishRequest, source: _Source, folder: Path, how: Transfer) -> None:
    """Copies the files of the run at its step, or of the model folder."""
    root = _root(request, source)
    for name in run_files(root, source.step):
        _place(root / name, folder / name, how)


def _place(path: Path, target: Path, how: Transfer) -> None:
    """Copies a file, or links it in a temporary folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "link":
        target.symlink_to(path.resolve())
    else:
        shutil.copy2(path, target)


def _root(request: PublishRequest, source: _Source) -> Path:
    model = request.model
    return model if model is not None and (model / MODEL_FILE).is_file() and not request.flow_only else source.flow


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _planned(request: PublishRequest, source: _Source) -> dict[str, int]:
    """Names and sizes of the files that would be written; those of the card and of headers are about."""
    if request.form == "run":
        root = _root(request, source)
        files = {name: (root / name).stat().st_size for name in run_files(root, source.step)}
    else:
        specs = entries(abstract(source.config.flow)[1])
        files = shard_sizes(specs, int(request.shard_size * _GIGABYTE))
        if len(files) > 1:
            files[INDEX_FILE] = sum(len(spec.name) + len(STEM) + 40 for spec in specs)
        files[CONFIG_FILE] = len(to_json(public_config(source.config)).encode())
        files[PUBLISHED_FILE] = len(_description(request, source).encode())
        for name, part in source.parts.items():
            for inner in frozen_files(part.path):
                file = (Path(part_target(name, part)) / inner).as_posix()
                files[file] = (part.path / inner).stat().st_size
    files[CARD_FILE] = len(_card(request, source, ()).text().encode())
    return files


def _card(request: PublishRequest, source: _Source, results: tuple[tuple[str, ...], ...]) -> Card:
    return Card(
        name=source.config.name,
        repo=None if request.to is None else request.to.repo,
        license=request.license,
        notes=request.notes,
        config=source.config,
        step=source.step,
        parameters=count(abstract(unquantised(source.config.flow))[1]),
        frozen=tuple(source.parts),
        metrics=last_metrics(source.flow, source.step),
        results=results,
        as_run=request.form == "run",
    )


def _source(request: PublishRequest) -> _Source:
    """What a request publishes; ValueError where a part of it is missing."""
    parts: dict[str, Part] = {}
    if request.model is not None and not is_run(request.model):
        folder = load_model_folder(request.model)
        flow, config = folder.flow, run_config(folder.flow)
        parts = {"autoencoder": folder.autoencoder, "text_encoder": folder.text_encoder}
    else:
        flow = request.model or request.workdir  # type: ignore[assignment]
        config = run_config(flow)
        if not request.flow_only and request.form == "safetensors":
            parts = _frozen_of(config)
    if request.form == "safetensors":
        try:
            check_portable(config.flow)
        except ValueError as error:
            raise ValueError(f"{error}; the form run takes every flow") from error
    if request.flow_only:
        parts = {}
    return _Source(flow, config, existing_step(flow, config, request.step), parts)


def _frozen_of(config: ExperimentConfig) -> dict[str, Part]:
    """The frozen models that the configuration of a run names; those on the Hub stay there.

    Raises:
      ValueError: one of them is missing.
    """
    data = config.data
    autoencoder: Any = data.decoder or data.autoencoder
    if autoencoder is None and data.on_latents and data.path is not None and not is_address(data.path):
        autoencoder = kept_autoencoder(Path(data.path))
    found: dict[str, Part] = {}
    for name, path, read in zip(
        FROZEN, (autoencoder, data.text_encoder), (autoencoder_part, text_encoder_part), strict=True
    ):
        if path is None or is_address(path):
            continue
        try:
            found[name] = read(Path(path))
        except ValueError as error:
            raise ValueError(f"{error}; without its frozen models, a run is published as a flow only") from error
    return found
