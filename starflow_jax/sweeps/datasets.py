"""Data sets of a sweep as the input of a flow: opened, cropped, transformed, with their conditions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.config.sweep_config import Condition, SweepData, Transform
from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.pipeline.caption_account import caption_account
from starflow_jax.data.pipeline.readable_subset import Subset, readable
from starflow_jax.data.sources.latents import LatentSource
from starflow_jax.data.sources.mixture import example_spec
from starflow_jax.models.autoencoders import kept_autoencoder, latent_shape, load_autoencoder
from starflow_jax.sweeps.content_hash import FileHashes, content_hashes, model_hashes, values_hash
from starflow_jax.sweeps.latent_scale import log_scale
from starflow_jax.training.run_calibration import main_component
from starflow_jax.training.step.frozen_autoencoder import Frozen, load_encoder
from starflow_jax.training.step.frozen_text import FrozenText
from starflow_jax.training.step.inputs import check_source, condition, open_source
from starflow_jax.training.step.pixel_source import pixel_source


@dataclasses.dataclass(frozen=True, eq=False)
class DataSet:
    """One data set as the input of one flow.

    Attributes:
      name: in tables; role: "in" or "out" of the distribution.
      source: the readable examples; transform: applied to their pixels.
      source_levels, levels: number of values of a pixel, as stored and as scored; 0 for latents.
      encoder: autoencoder that encodes the pixels; None without one.
      shape: of the input of the flow; conditions: under which the data can be scored.
      fingerprint: hash of the content of the examples.
      log_scale: log of the change of volume by scaling of latents, nats for each dimension (`latent_scale`).
      skipped: examples that could not be read and were skipped, with the reasons.
    """

    name: str
    role: str
    source: Source
    transform: Transform
    source_levels: int
    levels: int
    encoder: Frozen | None
    shape: tuple[int, ...]
    conditions: tuple[Condition, ...]
    fingerprint: str
    log_scale: float | None
    skipped: Skipped

    def __len__(self) -> int:
        return len(self.source)

    @property
    def on_latents(self) -> bool:
        """Whether the flow reads latents, so that bits are counted for each latent dimension."""
        return self.levels == 0 or self.encoder is not None

    @property
    def dims(self) -> int:
        """Number of dimensions of an example."""
        return math.prod(self.shape)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Classes of all examples, int64 [n]; read once, when first used."""
        return np.asarray([int(self.source[index]["label"]) for index in range(len(self))])

    def image(self, index: int, example: dict[str, np.ndarray]) -> np.ndarray:
        """The pixels or the stored latent of an example as they are scored, before noise is added."""
        image = example["image"]
        if self.levels and self.levels != self.source_levels:
            image = (image.astype(np.int32) * self.levels // self.source_levels).astype(np.uint8)
        if self.transform == "inverted":
            return (self.levels - 1 - image.astype(np.int32)).astype(np.uint8)
        if self.transform == "upside-down":
            return np.ascontiguousarray(image[..., ::-1, :, :])
        if self.transform == "mixed":
            rows, columns = image.shape[-3:-1]
            order = np.random.default_rng([rows, columns]).permutation(rows * columns)
            return image.reshape(*image.shape[:-3], rows * columns, -1)[..., order, :].reshape(image.shape)
        if self.transform == "random":
            random = np.random.default_rng([0, index]).integers(0, self.levels, image.shape)
            return random.astype(np.uint8)
        return image


def open_data(
    data: SweepData,
    config: ExperimentConfig,
    conditions: tuple[Condition, ...],
    encoders: dict[str, Frozen] | None = None,
    known: FileHashes | None = None,
) -> DataSet:
    """Opens a data set for the flow of a run; every example that is scored is read once to find unreadable ones.

    Args:
      data: to open; config: of the run; conditions: of the sweep.
      encoders, known: autoencoders that were loaded before, and hashes of their files; new ones are added.

    Raises:
      ValueError: data that are missing, do not fit the flow, or do not allow the transform or the conditions.
    """
    where = f"data {data.name!r}" if data.name else "data"
    requested = data.conditions or conditions
    try:
        run = config if data.source is None else dataclasses.replace(config, data=_replaced(config.data, data.source))
        source, encoder = _opened(
            run, data, {} if encoders is None else encoders, needs_condition=requested != ("dropped",)
        )
        skipped = Skipped()
        source = readable(source, skipped, data.count)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if data.count is not None and len(source) > data.count:
        source = Subset(source, tuple(range(data.count)))
    levels = _levels(where, data, source, None if encoder is not None else config.data.pixel_levels)
    reads = bool(config.flow.num_classes or config.flow.text_dim)
    if reads and "shuffled" in requested:
        check(len(source) > 1, f"{where}: condition 'shuffled' needs two examples, got {len(source)}")
    shape = example_spec(source.source if isinstance(source, Subset) else source)["image"][0]
    indices_hash = values_hash({"places": source.indices}) if isinstance(source, Subset) else None
    values = {
        "held": content_hashes(_whole(source), run.data),
        "places": indices_hash,
        "split": data.split,
        "transform": data.transform,
        "levels": levels,
        "frames": run.data.frames,
        "autoencoder": model_hashes(run.data.autoencoder, {} if known is None else known),
    }
    return DataSet(
        name=data.name or source.name,
        role=data.role,
        source=source,
        transform=data.transform,
        source_levels=source.levels,
        levels=levels,
        encoder=encoder,
        shape=latent_shape(None if encoder is None else encoder.autoencoder, shape),
        conditions=requested if reads else ("dropped",),
        fingerprint=values_hash(values),
        log_scale=_log_scale(run, data.split, encoder, shape),
        skipped=skipped,
    )


def _levels(where: str, data: SweepData, source: Source, trained: int | None) -> int:
    """The levels of pixels as they are scored, 0 for latents; `where` names the data in messages.

    Args:
      trained: the levels of the training data; None where an autoencoder encodes pixels of any levels.
    """
    stored = source.levels
    check(
        stored > 0 or data.transform == "none", f"{where}: transform must be 'none' for latents, got {data.transform!r}"
    )
    check(stored > 0 or data.levels is None, f"{where}: levels must be None for latents, got {data.levels}")
    levels = stored if data.levels is None else data.levels
    check(
        not stored or data.levels is not None or trained in (None, stored),
        f"{where}: levels must be stated, since {source.name} has {stored} and the run was trained on {trained}, and "
        "bits/dim of different levels do not compare",
    )
    check(levels <= stored, f"{where}: levels must be at most the {stored} of {source.name}, got {levels}")
    return levels


def _whole(source: Source) -> Source:
    return source.source if isinstance(source, Subset) else source


def _replaced(data: DataConfig, source: SourceConfig) -> DataConfig:
    """The data configuration of a run with another source; all other fields, such as the noise, are unchanged."""
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(SourceConfig)}
    fields |= {"mixture": (), "warp": 0.0}
    if source.traits.latents:
        fields["autoencoder"] = None
    elif data.on_latents and data.autoencoder is None:
        autoencoder = None if data.path is None else kept_autoencoder(Path(data.path))
        fields["autoencoder"] = data.decoder if autoencoder is None else str(autoencoder)
        check(
            fields["autoencoder"] is not None,
            f"source must be 'latents' for a run on latents whose autoencoder is not known, got {source.source!r}",
        )
    return dataclasses.replace(data, **fields)


def _opened(
    config: ExperimentConfig, data: SweepData, encoders: dict[str, Frozen], *, needs_condition: bool
) -> tuple[Source, Frozen | None]:
    """The source of the shape that the flow reads, and the autoencoder that encodes it."""
    path = config.data.autoencoder
    encoder = encoders.get(path) if path is not None else None
    if encoder is None and path is not None:
        encoder = load_encoder(config)
        assert encoder is not None  # since the path is not None
        encoders[path] = encoder
    autoencoder = None if encoder is None else encoder.autoencoder
    if autoencoder is None:
        source = open_source(config.data, data.split, flow=config.flow, text=config.text)
    else:
        takes = (autoencoder.stride, autoencoder.pixel_channels, autoencoder.frame_stride)
        source = pixel_source(config, data.split, *takes)
    source = main_component(source, config.flow, autoencoder)
    if needs_condition:
        check_source(source, config.flow, config.text, autoencoder)
        if (account := caption_account(source)) is not None:
            account.check_any()
    else:
        shape = latent_shape(autoencoder, example_spec(source)["image"][0])[-3:]
        expected = (*config.flow.image_shape, config.flow.channels)
        check(shape == expected, f"{source.name} must have the shape {list(expected)} of the flow, got {list(shape)}")
    return source, encoder


def _log_scale(config: ExperimentConfig, split: str, encoder: Frozen | None, shape: tuple[int, ...]) -> float | None:
    """See `latent_scale.log_scale`; for stored latents, of the autoencoder that is stored beside them."""
    if encoder is not None:
        return log_scale(encoder.autoencoder, encoder.params, latent_shape(encoder.autoencoder, shape))
    if not config.data.traits.latents or config.data.path is None:
        return None
    folder = Path(config.data.path)
    path = kept_autoencoder(folder) or kept_autoencoder(folder / split)
    if path is None:
        return None
    autoencoder, params = load_autoencoder(path)
    return log_scale(autoencoder, params, shape)


class Conditions:
    """Conditions that the examples of a data set are scored under.

    Args:
      data: the examples; config: of the run; seed: of the shuffling.
      load: loads the text encoder; called only where captions are not stored as text states.
    """

    def __init__(self, data: DataSet, config: ExperimentConfig, seed: int, load: Callable[[], FrozenText | None]):
        self._data, self._config = data, config
        self._reads = bool(config.flow.num_classes or config.flow.text_dim)
        spec = example_spec(_whole(data.source))
        self._stored, self._seed = "text_states" in spec, seed
        self._text: FrozenText | None = None
        # Text states of the empty caption alone; other captions are too many to cache.
        self._known: dict[bytes, np.ndarray] = {}
        if self._reads and "text" in spec and not self._stored:
            self._text = load()
            if self._text is not None:
                _, self._known = self._text.states_of(self._text.empty[None])

    def rows(self, kind: Condition, indices: np.ndarray, examples: dict[int, dict[str, Any]]) -> np.ndarray | None:
        """The conditions of examples: labels [B], text states [B, L, D], or None.

        Args:
          indices: indices of the examples, int [B]; examples: the examples by index; shuffled ones are read here.
        """
        if not self._reads:
            return None
        if kind == "shuffled":
            indices = self._shuffled[indices]
            examples = {int(index): self._data.source[int(index)] for index in np.unique(indices)}
        rows = [examples[int(index)] for index in indices]
        dropped = kind == "dropped"
        if self._stored:
            return np.stack([self._empty_states(row) if dropped else row["text_states"] for row in rows])
        if self._text is not None:
            ids = np.stack([self._text.empty if dropped else row["text"] for row in rows])
            return self._text.states_of(ids, self._known)[0]
        labels = np.asarray([-1 if dropped else int(row["label"]) for row in rows], np.int32)
        cond = condition(jnp.asarray(labels), self._config.flow)
        return None if cond is None else np.asarray(cond)

    @functools.cached_property
    def _shuffled(self) -> np.ndarray:
        """For every example the index of the example whose condition it gets, int [n]."""
        if len(self._data) < 2:
            return np.arange(len(self._data))
        order = random_cycle(len(self._data), self._seed)
        return (
            order if self._stored or self._text is not None else avoid_own_label(order, self._data.labels, self._seed)
        )

    def _empty_states(self, row: dict[str, Any]) -> np.ndarray:
        source = _whole(self._data.source)
        empty = source.records.empty if isinstance(source, LatentSource) else None
        return np.zeros_like(row["text_states"]) if empty is None else empty


def random_cycle(count: int, seed: int) -> np.ndarray:
    """A random permutation that is one cycle, and so has no fixed points (Sattolo's algorithm)."""
    rng, order = np.random.default_rng([seed, count]), np.arange(count)
    for last in range(count - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def avoid_own_label(order: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Changes a permutation without fixed points so that as few examples as possible get their true label.

    An example that gets its true label swaps with a random one such that neither gets its true label. Such an example
    exists unless more than half of all examples have the label; then the number that remains is the smallest possible.

    Args:
      order: int [n], the example whose label each example gets; labels: int [n]; seed: of the random swaps.
    """
    order = order.copy()
    rng = np.random.default_rng([seed, len(order), 1])
    for index in np.flatnonzero(labels[order] == labels):
        label = labels[index]
        if labels[order[index]] != label:
            continue  # an earlier swap changed it
        candidates = np.flatnonzero((labels[order] != label) & (labels != label))
        if len(candidates):
            other = candidates[rng.integers(len(candidates))]
            order[index], order[other] = order[other], order[index]
    return order
