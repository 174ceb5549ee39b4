"""Lists and identifies the checkpoints that a sweep scores, without reading their arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.sweep_config import SweepRun
from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.flows.parameters import abstract, count
from starflow_jax.sampling.model_folder import MODEL_FILE, ModelFolder, load_model_folder
from starflow_jax.sweeps.content_hash import FileHashes, model_hashes, values_hash
from starflow_jax.training.checkpoints.parts import Unusable, read_digests, steps_in
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, read_config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One step of one run.

    Attributes:
      run: name of the run in tables; workdir: its folder; step: of the checkpoint.
      ema: whether the exponential moving average of the parameters is used.
      config: of the run, with networks in float32 and matrix products at full precision.
      parameters: number of trained parameters of the flow.
      fingerprint: hash of the parameters and of the flow's configuration; for an unusable checkpoint, of its path.
    """

    run: str
    workdir: Path
    step: int
    ema: bool
    config: ExperimentConfig
    parameters: int
    fingerprint: str


def find_checkpoints(run: SweepRun, file_hashes: FileHashes | None = None) -> list[Checkpoint]:
    """The checkpoints that a run of a sweep names, oldest first.

    Args:
      file_hashes: hashes of the files of frozen models, computed before; new ones are added.

    Raises:
      ValueError: no run or model in the folder, no checkpoint, or a step that does not exist.
    """
    workdir = local_path(run.workdir, without_optimizer).absolute()
    name = run.name or workdir.name
    model = None
    if (workdir / MODEL_FILE).is_file():
        model = load_model_folder(workdir)
        workdir = model.flow
    config = read_config(workdir)
    if config is None or not (workdir / CHECKPOINT_FOLDER).is_dir():
        raise ValueError(f"runs: {run.workdir} contains no training run and no ported model")
    if model is not None:
        config = dataclasses.replace(config, data=_with_parts(config, model))
    available = steps_in(workdir / CHECKPOINT_FOLDER)
    check(len(available) > 0, f"runs: {run.workdir} contains no checkpoint")
    steps = {"all": available, "newest": available[-1:]}[run.steps] if isinstance(run.steps, str) else sorted(run.steps)
    missing = [str(step) for step in steps if step not in available]
    named = ", ".join(map(str, available))
    check(not missing, f"runs: steps of {run.workdir} must be among {named}, got {', '.join(missing)}")
    # Kernels that are asked for may be of another platform or dtype.
    kernels = "xla" if config.flow.kernels == "xla" else "auto"
    exact = {"dtype": "float32", "matmul_precision": "highest", "remat": "none", "dropout": 0.0, "kernels": kernels}
    flow = dataclasses.replace(config.flow, **exact)
    data = dataclasses.replace(config.data, autoencoder_dtype="float32", threads=0, workers=0)
    config = dataclasses.replace(config, flow=flow, data=data)
    parameters = count(abstract(flow)[1])
    file_hashes = {} if file_hashes is None else file_hashes
    frozen = [model_hashes(data.autoencoder, file_hashes), model_hashes(data.text_encoder, file_hashes)]
    return [
        Checkpoint(
            name, workdir, step, run.ema, config, parameters, _fingerprint(workdir, step, run.ema, config, frozen)
        )
        for step in steps
    ]


def _with_parts(config: ExperimentConfig, model: ModelFolder) -> DataConfig:
    """The data configuration of a model folder, with the frozen models of that folder."""
    data, autoencoder = config.data, str(model.autoencoder.with_scale)
    if data.autoencoder is not None:
        data = dataclasses.replace(data, autoencoder=autoencoder)
    elif data.on_latents:  # stored latents; other data are encoded by the autoencoder that decodes them
        data = dataclasses.replace(data, decoder=autoencoder)
    if config.text is None:
        data = dataclasses.replace(data, text_encoder=str(model.text_encoder.path))
    return data


def _fingerprint(workdir: Path, step: int, ema: bool, config: ExperimentConfig, frozen: list[Any]) -> str:
    folder = workdir / CHECKPOINT_FOLDER / str(step)
    try:
        digests = read_digests(folder)
        mean = ema and config.train.ema > 0 and "ema" in digests
        weights: Any = digests.get("ema" if mean else "params")
    except Unusable:
        weights = [str(folder), ema]
    vocabulary = None if config.text is None else config.text.vocabulary
    return values_hash({"weights": weights, "flow": config.flow.identity(), "frozen": frozen, "text": vocabulary})
