"""Calibration of a trained run for the automatic solver: measured on its training data, stored in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.choices import Split
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import Source
from starflow_jax.data.pipeline.readable_subset import next_readable
from starflow_jax.data.sources.latents import LatentSource
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.parameters import Params
from starflow_jax.models.autoencoders import Autoencoder
from starflow_jax.solvers.automatic.calibration import Calibration
from starflow_jax.solvers.automatic.solver_measurement import calibrate
from starflow_jax.training.calibrate_request import CalibrateRequest
from starflow_jax.training.inverse.inverse_folder import LoadedInverse
from starflow_jax.training.step.frozen_autoencoder import Frozen, open_with_encoder
from starflow_jax.training.step.frozen_text import load_text
from starflow_jax.training.step.inputs import condition, latent_shape, noisy_pixels

CALIBRATION_FILE = "calibration.json"


def calibrate_run(
    config: ExperimentConfig,
    params: Params,
    request: CalibrateRequest,
    *,
    step: int = 0,
    inverse: LoadedInverse | None = None,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Calibrates a trained flow on examples of its training data; see `solvers.automatic.solver_measurement`.

    Args:
      config, params, step: as `load_run` gives them.
      request: the examples, the guidance and the target error.
      inverse: the learned inverse of the run, whose estimates are tried as well; None for none.
      progress: called with a message before each block.

    Raises:
      ValueError: data that cannot be read.
    """
    source, encoder, examples = _examples(config, "train", request.samples)
    levels = source.levels
    pixels = jnp.asarray(np.stack([example["image"] for example in examples]))
    if encoder is not None:
        pixels, levels = encoder.latents(pixels, levels), 0
    x = noisy_pixels(jax.random.key(request.seed), pixels, levels, config.data)
    cond = example_conditions(config, examples)
    weight = config.sample.guidance if request.guidance is None else request.guidance
    guidance = None
    if weight and cond is not None:
        annealed = config.sample.annealed_guidance
        guidance = make_guidance(config.flow.family, cond, weight, null=empty_states(config, source), annealed=annealed)
    return calibrate(
        config.flow,
        params,
        x,
        cond,
        guidance=guidance,
        weight=weight,
        target_error=request.target_error,
        step=step,
        learned=None if inverse is None else inverse.params,
        inverse_step=None if inverse is None else inverse.step,
        progress=progress,
    )


def load_conditions(config: ExperimentConfig, split: Split, samples: int) -> jax.Array | None:
    """The conditions of examples at equal distances in a split, as `Flow.forward` takes them."""
    return example_conditions(config, _examples(config, split, samples)[2])


def _examples(
    config: ExperimentConfig, split: Split, samples: int
) -> tuple[Source, Frozen | None, list[Mapping[str, Any]]]:
    """The source, the autoencoder that encodes it, and at most `samples` examples."""
    source, encoder = open_with_encoder(config, split)
    source = main_component(source, config.flow, None if encoder is None else encoder.autoencoder)
    indices = np.linspace(0, len(source) - 1, min(samples, len(source))).astype(int)
    return source, encoder, [next_readable(source, int(index)) for index in indices]


def main_component(source: Source, flow: FlowConfig, autoencoder: Autoencoder | None = None) -> Source:
    """Of several sources or buckets, the one with the flow's image size and the most frames, like its samples."""
    parts = [one.source for one in components_of(source)]
    shapes = {part: latent_shape(autoencoder, example_spec(part)["image"][0]) for part in parts}
    fitting = [one for one, shape in shapes.items() if shape[-3:-1] == flow.image_shape]
    return max(fitting, key=lambda one: shapes[one], default=source)


def example_conditions(config: ExperimentConfig, examples: Sequence[Mapping[str, Any]]) -> jax.Array | None:
    """The conditions of examples of a source, as `Flow.forward` takes them.

    Raises:
      ValueError: see `frozen_text.load_text`.
    """
    if "text_states" in examples[0]:
        return jnp.asarray(np.stack([example["text_states"] for example in examples]))
    text = load_text(config) if "text" in examples[0] else None
    if text is not None:
        return jnp.asarray(text.over(None).states_of(np.stack([example["text"] for example in examples]))[0])
    return condition(jnp.asarray([int(example["label"]) for example in examples], jnp.int32), config.flow)


def empty_states(config: ExperimentConfig, source: Source) -> jax.Array | None:
    """Text states float32 [1, L, D] of the empty caption, the unconditional input of guidance; None for zeros."""
    if isinstance(source, LatentSource):
        return None if source.records.empty is None else jnp.asarray(source.records.empty)[None]
    text = load_text(config) if "text" in example_spec(source) else None
    return None if text is None else jnp.asarray(text.over(None).states_of(text.empty[None])[0])


def write_calibration(workdir: Path | str, calibration: Calibration) -> Path:
    """Writes `calibration.json` into the folder of a run atomically; returns its path."""
    path = Path(workdir) / CALIBRATION_FILE
    write_text(path, calibration.to_json())
    return path


def read_calibration(workdir: Path | str, config: ExperimentConfig) -> Calibration:
    """Reads the calibration in the folder of a run.

    Raises:
      ValueError: no calibration, an invalid file, or one of another flow; the message gives the remedy.
    """
    path = Path(workdir) / CALIBRATION_FILE
    remedy = f"run starflow calibrate --workdir {workdir}"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {remedy}")
    try:
        calibration = Calibration.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a calibration ({error}); {remedy}") from error
    with_layers = tuple(index for index, block in enumerate(config.flow.blocks) if block.layers)
    channels = {len(block.mean) for block in calibration.blocks}
    fits = (calibration.num_blocks, tuple(block.block for block in calibration.blocks), channels) == (
        config.flow.num_blocks,
        with_layers,
        {config.flow.token_channels},
    )
    if not fits:
        raise ValueError(f"{path} is the calibration of another flow; {remedy}")
    return calibration
