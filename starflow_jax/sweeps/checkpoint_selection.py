"""The checkpoints that a sweep scores: which there are, and what each is, before any array is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.core.config.sweep import SweepRun
from starflow_jax.flows.parameters import abstract, count
from starflow_jax.sampling.model_folder import MODEL_FILE, ModelFolder, load_model_folder
from starflow_jax.sweeps.content_hash import Known, described, hash_of
from starflow_jax.training.checkpoints.parts import Unusable, read_digests, steps_in
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, read_config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One step of one run.

    Attributes:
      run: what tables call the run; workdir: its folder; step: of the checkpoint; ema: whether its mean is taken.
      config: of the run, its networks in float32 and float32 products at full precision.
      parameters: trained numbers of the flow.
      fingerprint: of the parameters and of what the flow is; of a checkpoint that cannot be used, of its place.
    """

    run: str
    workdir: Path
    step: int
    ema: bool
    config: ExperimentConfig
    parameters: int
    fingerprint: str


def find_checkpoints(run: SweepRun, known: Known | None = None) -> list[Checkpoint]:
    """The checkpoints that a run of a sweep names, oldest first.

    Args:
      known: contents of frozen models that were read before; what is read now is added.

    Raises:
      ValueError: no run or model there, no checkpoint, or a step that it does not have.
    """
    workdir = Path(run.workdir).absolute()
    name = run.name or workdir.name
    model = None
    if (workdir / MODEL_FILE).is_file():
        model = load_model_folder(workdir)
        workdir = model.flow
    config = read_config(workdir)
    if config is None or not (workdir / CHECKPOINT_FOLDER).is_dir():
        raise ValueError(f"runs: {run.workdir} holds no training run and no ported model")
    if model is not None:
        config = dataclasses.replace(config, data=_with_parts(config, model))
    there = steps_in(workdir / CHECKPOINT_FOLDER)
    check(len(there) > 0, f"runs: {run.workdir} holds no checkpoint")
    steps = {"all": there, "newest": there[-1:]}[run.steps] if isinstance(run.steps, str) else sorted(run.steps)
    missing = [str(step) for step in steps if step not in there]
    named = ", ".join(map(str, there))
    check(not missing, f"runs: steps of {run.workdir} must be among {named}, got {', '.join(missing)}")
    flow = dataclasses.replace(config.flow, dtype="float32", matmul_precision="highest", remat="none", dropout=0.0)
    data = dataclasses.replace(config.data, autoencoder_dtype="float32", threads=0, workers=0)
    config = dataclasses.replace(config, flow=flow, data=data)
    parameters = count(abstract(flow)[1])
    known = {} if known is None else known
    frozen = [described(data.autoencoder, known), described(data.text_encoder, known)]
    return [
        Checkpoint(
            name, workdir, step, run.ema, config, parameters, _fingerprint(workdir, step, run.ema, config, frozen)
        )
        for step in steps
    ]


def _with_parts(config: ExperimentConfig, model: ModelFolder) -> DataConfig:
    """The data of a model folder's flow, with the frozen models that lie there in place of those of its training."""
    data, autoencoder = config.data, str(model.autoencoder.with_scale)
    if data.autoencoder is not None:
        data = dataclasses.replace(data, autoencoder=autoencoder)
    elif data.on_latents:  # that were computed before; other data are encoded by what decodes them
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
    return hash_of({"weights": weights, "flow": dataclasses.asdict(config.flow), "frozen": frozen, "text": vocabulary})
