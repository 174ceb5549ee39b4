"""Training an autoencoder, or a decoder, from start or last checkpoint to end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from starflow_jax.core.config.autoencoder import AutoencoderExperiment
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.data import Source
from starflow_jax.data.pipeline.batches import train_loader
from starflow_jax.data.sources.opening import Split, open_source
from starflow_jax.models.autoencoders import AUTOENCODER_FOLDER, load_autoencoder, save_autoencoder
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.reconstruction.lpips import SMALLEST, read_lpips
from starflow_jax.reconstruction.reconstruction_quality import Reconstruction, quality, reconstructed
from starflow_jax.reconstruction.update import AUTOENCODER, METRICS, Judged, init_state, rate, update
from starflow_jax.sharding.layout import Layout, located
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.resume import go_on
from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use
from starflow_jax.training.loop.metrics import MetricsWriter, average
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import stop_requests
from starflow_jax.training.step.pixel_source import check_pixels
from starflow_jax.training.step.train_step import TrainState

COLUMNS = ("step", *METRICS, "psnr", "learning_rate", "images_per_second")
# Pictures whose latents say by what they are scaled to unit variance.
_MEASURED = 1024


class Trained(NamedTuple):
    """How a run ended.

    Attributes:
      path: the folder of the autoencoder, None where the run was stopped before its end.
      step: updates made; stopped_by: the number of the signal that stopped it, 0 for none.
      metrics: the last row; seconds: without the evaluation.
      before, after: reconstructions of held-out pictures from clean and, with latent_noise, noisy latents; `before` is
        empty for a new autoencoder.
      pictures: [n, H, W, C] in [-1, 1], held out; shown: what is shown of them, by what it is, of the same shape.
    """

    path: Path | None
    step: int
    stopped_by: int
    metrics: Mapping[str, float]
    seconds: float
    before: tuple[Reconstruction, ...]
    after: tuple[Reconstruction, ...]
    pictures: np.ndarray
    shown: Mapping[str, np.ndarray]


def train_autoencoder(experiment: AutoencoderExperiment, workdir: Path, *, progress: bool = True) -> Trained:
    """Trains a new autoencoder, or the decoder of one that exists, in `workdir`; or goes on where a run stopped.

    The folder receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard) and at the end `autoencoder/`, in
    the layout of diffusers: the running mean where there is one. A new autoencoder gets the scaling factor that gives
    the latents of its training pictures unit variance. Ctrl-C and SIGTERM save a checkpoint and return.

    Raises:
      ValueError: data or files that do not fit, or a folder that is not this run's or holds a damaged checkpoint.
      SaveFailed: a checkpoint could not be written.
    """
    judged, params, perceptual, source, pictures, layout = checked(experiment)
    autoencoder = judged.autoencoder
    claim_workdir(workdir, experiment)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        stack.enter_context(in_use(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir, experiment, write=True))
        bar = Progress(experiment.name, experiment.train.steps, enabled=progress)
        state, frozen = init_state(judged, params)
        abstract = located(layout, jax.eval_shape(lambda: state))
        found = go_on(checkpoints, abstract, lambda step: _loader(experiment, source, layout), "latest", bar.say)
        if found is not None:
            state, loader = found
        else:
            loader = _loader(experiment, source, layout)
            state = _put(layout, state)
        stack.callback(loader.close)
        stack.enter_context(bar.begun(int(state.step)))
        writer = stack.enter_context(MetricsWriter(workdir, int(state.step), fields=COLUMNS))
        begun = time.perf_counter()
        run = _Run(judged, source.levels, layout, state, _put(layout, frozen), _put(layout, perceptual), loader)
        metrics: Mapping[str, float] = {}
        stopped_by = 0
        while run.step < experiment.train.steps:
            if stopped_by := stop.agreed(run.wait):
                break
            run.advance()
            bar.advance(1)
            last = run.step == experiment.train.steps
            if last or run.step % experiment.train.log_every == 0:
                metrics = run.measure()
                writer.write(run.step, metrics)
                bar.show(run.step, metrics)
            if last or run.step % experiment.train.checkpoint_every == 0:
                checkpoints.save(run.state, loader.get_state())
        if stopped_by:
            checkpoints.save(run.state, loader.get_state(), wait=True)
        seconds = time.perf_counter() - begun
    if stopped_by:
        return Trained(None, run.step, stopped_by, metrics, seconds, (), (), pictures, {})
    trained = jax.device_get((run.state.ema or run.state.params)[AUTOENCODER])
    result = {**params, **trained}
    if judged.whole:
        autoencoder = _unit_variance(autoencoder, result, _scaled_pictures(source, _MEASURED))
    _replace(workdir / AUTOENCODER_FOLDER, autoencoder, result)
    before, shown = ((), {}) if judged.whole else _evaluated(judged, autoencoder, params, pictures, "before")
    after, more = _evaluated(judged, autoencoder, result, pictures, "trained" if judged.whole else "after")
    path = workdir / AUTOENCODER_FOLDER
    return Trained(path, run.step, 0, metrics, seconds, before, after, pictures, shown | more)


def checked(
    experiment: AutoencoderExperiment,
) -> tuple[Judged, Params, Params | None, Source, np.ndarray, Layout | None]:
    """What a run needs, before anything is computed: the autoencoder, LPIPS, the data, held-out pictures, the devices.

    Raises:
      ValueError: files that are missing or damaged, or parts that do not fit together.
    """
    autoencoder, stored = _start(experiment)
    judged = Judged(experiment, autoencoder)
    layout = make_layout(experiment.mesh)
    _check_fit(judged, layout)
    perceptual = read_lpips(map(Path, experiment.loss.perceptual_weights)) if experiment.loss.perceptual else None
    source, held_out = (_open(judged, split) for split in ("train", "test"))
    params = _new(autoencoder, experiment.seed) if stored is None else stored
    return judged, params, perceptual, source, _scaled_pictures(held_out, experiment.evaluate), layout


class _Run:
    """The moving parts."""

    def __init__(self, judged, levels, layout, state, frozen, perceptual, loader):
        self.judged: Judged = judged
        self.levels: int = levels
        self.layout: Layout | None = layout
        self.state: TrainState = state
        self.frozen: Params = frozen
        self.perceptual: Params | None = perceptual
        self.loader = loader
        self.step = int(state.step)  # on the host, so that nothing waits for the device
        self.calls: list[Mapping[str, Any]] = []
        self.since: float | None = None  # the first update compiles, and is not counted

    def advance(self) -> None:
        """One more update."""
        pixels = next(self.loader)["image"]
        if self.layout is not None:
            pixels = self.layout.assemble(pixels)
        self.state, metrics = update(
            self.judged, self.levels, self.state, self.frozen, self.perceptual, pixels, self.layout
        )
        self.calls.append(metrics)
        self.step += 1
        if self.since is None:
            self.wait()
            self.since, self.counted = time.perf_counter(), 0
        else:
            self.counted += 1

    def measure(self) -> dict[str, float]:
        """Means over the updates since the last row; waits for the device."""
        calls = [{name: np.reshape(value, 1) for name, value in call.items()} for call in jax.device_get(self.calls)]
        values = average(calls)
        train = self.judged.experiment.train
        now = time.perf_counter()
        assert self.since is not None  # an update was made
        if self.counted:
            values["images_per_second"] = self.counted * train.batch_size / (now - self.since)
        values["psnr"] = float(10.0 * np.log10(4.0 / max(values["square_error"], 1e-12)))
        values["learning_rate"] = float(rate(train, self.step))
        self.calls, self.since, self.counted = [], now, 0
        return values

    def wait(self) -> None:
        """Returns when the device has done everything asked of it."""
        jax.block_until_ready(self.state.step)


def _start(experiment: AutoencoderExperiment) -> tuple[AutoencoderKL, Params | None]:
    """The autoencoder, and its parameters where it exists already."""
    if experiment.network is not None:
        network = dataclasses.asdict(experiment.network)
        return AutoencoderKL(**network, scaling_factor=1.0, dtype=experiment.dtype), None
    assert experiment.autoencoder is not None  # AutoencoderExperiment checks it
    path = Path(experiment.autoencoder)
    found, params = load_autoencoder(path, experiment.dtype if path.is_dir() else "float32")
    if not isinstance(found, AutoencoderKL):
        raise ValueError(f"autoencoder {path} must be an AutoencoderKL to be fine-tuned, got {type(found).__name__}")
    return found, params


def _open(judged: Judged, split: Split) -> Source:
    """The pictures of a split, which must suit the autoencoder."""
    experiment, autoencoder = judged.experiment, judged.autoencoder
    # Sources ask a flow how large the pictures are that it reads.
    reads = FlowConfig(autoencoder.pixel_channels, experiment.image_shape, 64, 1, 1)
    source = open_source(experiment.data, split, flow=reads)
    check_pixels(source, autoencoder.stride, autoencoder.pixel_channels)
    return source


def _check_fit(judged: Judged, layout: Layout | None) -> None:
    experiment, smallest = judged.experiment, min(judged.experiment.image_shape)
    if experiment.loss.perceptual:
        check(smallest >= SMALLEST, f"image_size must be at least {SMALLEST} for LPIPS, got {smallest}")
        colours = judged.autoencoder.pixel_channels
        check(colours in (1, 3), f"LPIPS compares pictures of 1 or 3 channels, got {colours}")
    if judged.discriminator is not None:
        least = judged.discriminator.smallest
        check(
            smallest >= least,
            f"image_size must be at least {least} for loss.discriminator_layers="
            f"{experiment.loss.discriminator_layers}, got {smallest}",
        )
    check(jax.process_count() == 1, f"autoencoders are trained by one process, got {jax.process_count()}")
    parts = 1 if layout is None else layout.share()[1]
    size = experiment.train.batch_size
    check(size % parts == 0, f"train.batch_size must be a multiple of mesh.data x mesh.fsdp = {parts}, got {size}")


def _loader(experiment: AutoencoderExperiment, source: Source, layout: Layout | None) -> Any:
    process = (0, 1) if layout is None else layout.share()
    return train_loader(source, experiment.train.batch_size, experiment.seed, process=process)


def _put(layout: Layout | None, tree: Any) -> Any:
    """A tree where a restored one would lie."""
    if layout is None:
        return jax.device_put(tree, jax.local_devices()[0])
    return jax.device_put(tree, layout.tree(tree))


def _scaled_pictures(source: Source, count: int) -> np.ndarray:
    """Pictures spread over a source, float32 [n, H, W, C] in [-1, 1]."""
    places = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    images = np.stack([source[int(place)]["image"] for place in places])
    return images.astype(np.float32) * np.float32(2.0 / (source.levels - 1)) - np.float32(1.0)


def _unit_variance(autoencoder: AutoencoderKL, params: Params, pictures: np.ndarray) -> AutoencoderKL:
    """The same with the scaling factor 1 / (standard deviation of its latents), as latent diffusion has it."""
    size = min(64, len(pictures))
    batches = [pictures[first : first + size] for first in range(0, len(pictures) - size + 1, size)]
    std = float(np.std(np.concatenate([np.asarray(_encoded(autoencoder, params, batch)) for batch in batches])))
    check(np.isfinite(std) and std > 0, f"latents must vary, got a standard deviation of {std}")
    return dataclasses.replace(autoencoder, scaling_factor=autoencoder.scaling_factor / std)


@functools.partial(jax.jit, static_argnums=0)
def _encoded(autoencoder: AutoencoderKL, params: Params, pixels: jax.Array) -> jax.Array:
    return autoencoder.encode(params, pixels)


@functools.partial(jax.jit, static_argnums=0)
def _new(autoencoder: AutoencoderKL, seed: jax.Array | int) -> Params:
    return autoencoder.init(jax.random.key(seed))


def _evaluated(
    judged: Judged, autoencoder: AutoencoderKL, params: Params, pictures: np.ndarray, name: str
) -> tuple[tuple[Reconstruction, ...], dict[str, np.ndarray]]:
    """Reconstructions of clean latents, and of noisy ones where the experiment adds noise."""
    rows, shown = [], {}
    noise = judged.experiment.loss.latent_noise
    for std in (0.0, noise) if noise else (0.0,):
        found = reconstructed(autoencoder, params, pictures, std, judged.experiment.seed, 64)
        rows.append(quality(pictures, found, std))
        shown[f"{name}, {rows[-1].latents}"] = found
    return tuple(rows), shown


def _replace(folder: Path, autoencoder: AutoencoderKL, params: Params) -> None:
    """Writes the autoencoder in place of what an earlier call wrote, which stays until the new one is whole."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    save_autoencoder(new, dataclasses.replace(autoencoder, dtype="float32"), params)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
