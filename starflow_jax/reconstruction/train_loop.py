"""Training an autoencoder, or the decoder of one: from the first update or the last checkpoint to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.storage.local_moves import move
from starflow_jax.data import Loader
from starflow_jax.models.autoencoders import AUTOENCODER_FOLDER, save_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.reconstruction.reconstruction_quality import Reconstruction, quality, reconstructed
from starflow_jax.reconstruction.reconstruction_request import FinetuneDecoderRequest, TrainAutoencoderRequest
from starflow_jax.reconstruction.reconstruction_setup import Setup, scaled_images
from starflow_jax.reconstruction.update import AUTOENCODER, METRICS, init_state, learning_rate, update
from starflow_jax.sharding.layout import located
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.resume import restore_newest
from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use
from starflow_jax.training.loop.basic_loop import BasicRun, run_to_end
from starflow_jax.training.loop.metrics import MetricsWriter
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import stop_requests
from starflow_jax.training.step.train_step import TrainState

COLUMNS = ("step", *METRICS, "psnr", "learning_rate", "images_per_second")
# Number of training images whose latents determine the scaling factor.
_SCALING_IMAGES = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """The result of a run.

    Attributes:
      path: folder of the autoencoder, None where the run was stopped before its end.
      step: number of updates made; stopped_by: number of the signal that stopped the run, 0 for none.
      metrics: the last row; seconds: duration without the evaluation.
      before, after: quality of held-out images reconstructed from clean and, with latent_noise, noisy latents;
        `before` is empty for a new autoencoder.
      images: held-out images [n, H, W, C] in [-1, 1]; reconstructions: of them, by description, of the same shape.
    """

    path: Path | None
    step: int
    stopped_by: int
    metrics: Mapping[str, float]
    seconds: float
    before: tuple[Reconstruction, ...]
    after: tuple[Reconstruction, ...]
    images: np.ndarray
    reconstructions: Mapping[str, np.ndarray]


def train_autoencoder(request: TrainAutoencoderRequest | FinetuneDecoderRequest) -> TrainedAutoencoder:
    """Trains a new autoencoder, or the decoder of an existing one, in a folder; or resumes training there.

    The folder receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard) and at the end `autoencoder/`, in
    the layout of diffusers: the exponential moving average where the run keeps one. A new autoencoder gets the scaling
    factor that gives the latents of its training images unit variance. Ctrl-C and SIGTERM save a checkpoint and return.

    Raises:
      ValueError: data or files that do not fit, or a folder that is not this run's or holds a damaged checkpoint.
      SaveFailed: a checkpoint could not be written.
    """
    experiment, workdir = request.experiment, request.workdir
    setup = Setup.from_experiment(experiment)
    claim_workdir(workdir, experiment)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        stack.enter_context(in_use(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, experiment, write=True))
        bar = Progress(experiment.name, experiment.train.steps, enabled=request.progress)
        state, frozen = init_state(setup.objective, setup.params)
        abstract = located(setup.layout, jax.eval_shape(lambda: state))
        restored = restore_newest(checkpoints, abstract, setup.loader, "latest", bar.say)
        state, loader = restored if restored is not None else (setup.put(state), setup.loader())
        stack.callback(loader.close)
        stack.enter_context(bar.started(int(state.step)))
        writer = stack.enter_context(MetricsWriter(workdir, int(state.step), fields=COLUMNS))
        start = time.perf_counter()
        run = _Run(setup, state, setup.put(frozen), setup.put(setup.perceptual), loader)
        metrics, stopped_by = run_to_end(run, stop, checkpoints, writer, bar)
        seconds = time.perf_counter() - start
    if stopped_by:
        return TrainedAutoencoder(None, run.step, stopped_by, metrics, seconds, (), (), setup.held_out, {})
    path = workdir / AUTOENCODER_FOLDER
    autoencoder, params = _finished(setup, run.state)
    _replace(path, autoencoder, params)
    new = setup.objective.trains_encoder
    before, images = ((), {}) if new else _evaluated(setup, autoencoder, setup.params, "before")
    after, more = _evaluated(setup, autoencoder, params, "trained" if new else "after")
    return TrainedAutoencoder(path, run.step, 0, metrics, seconds, before, after, setup.held_out, images | more)


class _Run(BasicRun):
    """The updates of an autoencoder."""

    def __init__(self, setup: Setup, state: TrainState, frozen: Params, perceptual: Params | None, loader: Loader):
        super().__init__(setup.experiment.train, state, loader)
        self.setup = setup
        self._frozen = frozen
        self._perceptual = perceptual

    def update(self, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Mapping[str, jax.Array]]:
        """See `BasicRun`."""
        setup = self.setup
        pixels: Any = batch["image"]
        if setup.layout is not None:
            pixels = setup.layout.assemble(pixels)
        return update(
            setup.objective, setup.source.levels, self.state, self._frozen, self._perceptual, pixels, setup.layout
        )

    def derived(self, values: dict[str, float]) -> dict[str, float]:
        """See `BasicRun`."""
        values["psnr"] = float(10.0 * np.log10(4.0 / max(values["square_error"], 1e-12)))
        values["learning_rate"] = float(learning_rate(self.setup.experiment.train, self.step))
        return values


def _finished(setup: Setup, state: TrainState) -> tuple[AutoencoderKL, Params]:
    """The trained autoencoder with its parameters; a new one scaled to latents of unit variance."""
    trained = jax.device_get((state.ema or state.params)[AUTOENCODER])
    autoencoder, params = setup.objective.autoencoder, {**setup.params, **trained}
    if setup.objective.trains_encoder:
        autoencoder = _unit_variance(autoencoder, params, scaled_images(setup.source, _SCALING_IMAGES))
    return autoencoder, params


def _unit_variance(autoencoder: AutoencoderKL, params: Params, images: np.ndarray) -> AutoencoderKL:
    """The autoencoder with scaling factor 1 / (standard deviation of its latents), as in latent diffusion."""
    size = min(64, len(images))
    batches = [images[first : first + size] for first in range(0, len(images) - size + 1, size)]
    std = float(np.std(np.concatenate([np.asarray(_encoded(autoencoder, params, batch)) for batch in batches])))
    check(np.isfinite(std) and std > 0, f"latents must not be constant, got a standard deviation of {std}")
    return dataclasses.replace(autoencoder, scaling_factor=autoencoder.scaling_factor / std)


@functools.partial(jax.jit, static_argnums=0)
def _encoded(autoencoder: AutoencoderKL, params: Params, pixels: jax.Array) -> jax.Array:
    return autoencoder.encode(params, pixels)


def _evaluated(
    setup: Setup, autoencoder: AutoencoderKL, params: Params, name: str
) -> tuple[tuple[Reconstruction, ...], dict[str, np.ndarray]]:
    """Reconstructs held-out images from clean latents, and from noisy ones where the experiment adds noise."""
    rows, images = [], {}
    noise = setup.experiment.loss.latent_noise
    for std in (0.0, noise) if noise else (0.0,):
        decoded = reconstructed(autoencoder, params, setup.held_out, std, setup.experiment.seed, 64)
        rows.append(quality(setup.held_out, decoded, std))
        images[f"{name}, {rows[-1].latents}"] = decoded
    return tuple(rows), images


def _replace(folder: Path, autoencoder: AutoencoderKL, params: Params) -> None:
    """Writes the autoencoder; the folder of an earlier call is replaced once the new one is complete."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for stale in (new, old):
        shutil.rmtree(stale, ignore_errors=True)
    save_autoencoder(new, dataclasses.replace(autoencoder, dtype="float32"), params)
    if folder.exists():
        move(folder, old)
    move(new, folder)
    shutil.rmtree(old, ignore_errors=True)
