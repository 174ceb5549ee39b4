"""A summary of the data of an experiment as the model reads them, with the speed of the pipeline."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.choices import Split, choices
from starflow_jax.core.config.checks import check_choice, check_real
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.data import Source
from starflow_jax.data.pipeline.batches import train_loader
from starflow_jax.data.pipeline.caption_account import CaptionAccount, caption_account
from starflow_jax.data.pipeline.loader import Loader
from starflow_jax.data.pipeline.opening_notes import class_names, opening_notes, printable_name
from starflow_jax.data.pipeline.overview import Overview, Part, overview, reading_rate
from starflow_jax.data.sources.latents import LatentSource
from starflow_jax.media import to_uint8
from starflow_jax.models.autoencoders import decode_latents
from starflow_jax.models.text import WordEncoder
from starflow_jax.training.checkpoints.workdir import CSV_FILE
from starflow_jax.training.loop.metrics import read_metrics
from starflow_jax.training.step.frozen_autoencoder import open_with_encoder
from starflow_jax.training.step.inputs import latent_shape, word_encoder

MAX_SECONDS = 3600
# Classes that are listed in one line.
_LISTED = 40


@dataclasses.dataclass(frozen=True)
class DataRequest:
    """A request to summarise the data of an experiment.

    Attributes:
      config: the experiment.
      split: of the data.
      seconds: duration of the measurement of the pipeline's speed, at most an hour; 0 for no measurement.
      workdir: folder of a run with whose training step the speed is compared; None for no comparison.

    Raises:
      RequestError, ValueError: a field is out of range.
    """

    config: ExperimentConfig
    split: Split = "train"
    seconds: float = 5.0
    workdir: Path | None = None

    def __post_init__(self) -> None:
        check_choice("split", self.split, choices(Split))
        check_real("seconds", self.seconds, minimum=0.0)
        require(self.seconds <= MAX_SECONDS, "{seconds} must be at most {0}, got {1:g}", MAX_SECONDS, self.seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class DataSummary:
    """What `starflow data` shows.

    Attributes:
      overview: counts, shapes, shares and examples of every part.
      latents: shapes of the latents that the training step encodes the data to; empty where it encodes nothing.
      encoder: of captions made of words of a vocabulary, None without one.
      rate: examples per second that the pipeline reads; None if it was not measured.
      needed: examples per second that the training step of the run takes; None without a run that measured it.
      skipped: reasons why examples could not be read, by name.
      captions: which examples have a caption; None where none are read from files.
      class_names: names of the classes in the order of their numbers, empty without names.
      left_aside: sentences about what the data contain and is not read.
      without_run: why the speed is not compared with that of the run that was asked for; None where it is.
    """

    overview: Overview
    latents: tuple[tuple[int, ...], ...]
    encoder: WordEncoder | None
    rate: float | None
    needed: float | None
    skipped: Mapping[str, str]
    captions: CaptionAccount | None = None
    class_names: tuple[str, ...] = ()
    left_aside: tuple[str, ...] = ()
    without_run: str | None = None

    def account(self) -> list[str]:
        """Sentences about captions, classes, and what is left aside."""
        lines = [] if self.captions is None else [self.captions.sentence()]
        if self.class_names:
            listed = [f"{number} {printable_name(name)}" for number, name in enumerate(self.class_names[:_LISTED])]
            more = len(self.class_names) - len(listed)
            lines.append(f"classes: {', '.join(listed)}{f', and {more} more' if more else ''}")
        return [*lines, *self.left_aside]

    def figures(self) -> dict[str, Any]:
        """The summary as JSON values."""
        speeds = {"examples_per_second": self.rate, "needed_per_second": self.needed}
        figures = self.overview.figures() | speeds | {"skipped": dict(self.skipped)}
        figures |= {"captions": None if self.captions is None else self.captions.figures()}
        figures |= {"class_names": self.class_names, "left_aside": self.left_aside, "without_run": self.without_run}
        if self.rate is not None and self.needed is not None:
            figures["ratio"] = self.rate / self.needed
        return figures

    def sheet_rows(self) -> list[tuple[str, list[tuple[np.ndarray, str]]]]:
        """The examples of every part with their captions, for `media.contact_sheet.write_contact_sheet`."""
        return [
            (_title(part), [(_pixels(one["image"], part.source), self._label(one)) for one in part.examples])
            for part in self.overview.parts
        ]

    def _label(self, example: Mapping[str, Any]) -> str:
        """The condition of an example: its caption, with the words of the vocabulary, or its class."""
        if self.encoder is not None and "text" in example:
            known = self.encoder.words(example["text"])
            caption = example.get("caption", known)
            return known if " ".join(caption.lower().split()) == known else f"{caption}\n-> {known or '(nothing)'}"
        if "text_states" in example or "text" in example:
            return example.get("caption", "")
        number = int(example["label"])
        if number < 0:
            return ""
        name = printable_name(self.class_names[number]) if number < len(self.class_names) else ""
        return f"class {number} {name}".rstrip()


def summarise_data(request: DataRequest) -> DataSummary:
    """Opens the data of an experiment, reads a few examples of each part, and measures the speed of the pipeline.

    Raises:
      ValueError: data that cannot be read or do not fit the flow.
    """
    config = request.config
    needed = None if request.workdir is None else training_rate(request.workdir)
    without_run = _missing(request.workdir) if request.workdir is not None and needed is None else None
    source, frozen = open_with_encoder(config, request.split)
    loader = _loader(source, config)
    encoder = None if config.text is None else word_encoder(config)
    summary = overview(source, loader, config.train.batch_size, encoder)
    latents = set() if frozen is None else {latent_shape(frozen.autoencoder, part.shape) for part in summary.parts}
    rate = reading_rate(loader, request.seconds) if request.seconds else None
    loader.close()
    skipped = {**summary.skipped, **loader.skipped.reasons}
    return DataSummary(
        overview=summary,
        latents=tuple(sorted(latents)),
        encoder=encoder,
        rate=rate,
        needed=needed,
        skipped=skipped,
        captions=caption_account(source),
        class_names=class_names(source),
        left_aside=tuple(opening_notes(source)),
        without_run=without_run,
    )


def _loader(source: Source, config: ExperimentConfig) -> Loader:
    """The batches of a training run, without its curriculum."""
    data = config.data
    return train_loader(
        source,
        config.train.batch_size,
        config.seed,
        threads=data.threads,
        workers=data.workers,
        prefetch=data.prefetch,
    )


def training_rate(workdir: Path) -> float | None:
    """Median of the images per second of a run; None without a run, or with one that has not measured it yet."""
    rows = read_metrics(workdir / CSV_FILE)
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second", 0) > 0]
    return statistics.median(rates) if rates else None


def _missing(workdir: Path) -> str:
    """What a folder lacks to be compared with."""
    if not workdir.is_dir():
        return f"{workdir} does not exist yet"
    if not (workdir / CSV_FILE).is_file():
        return f"{workdir} contains no {CSV_FILE} yet, which training writes"
    return f"{workdir / CSV_FILE} contains no images_per_second yet"


def _title(part: Part) -> str:
    shape = "x".join(map(str, part.shape))
    return f"{printable_name(part.name)}: {part.count} examples, {shape}, {100 * part.share:.1f} %"


def _pixels(image: np.ndarray, source: Source) -> np.ndarray:
    """Pixels 0..255 of an example; the first channels of latents without an autoencoder."""
    if not isinstance(source, LatentSource):
        return np.rint(image * (255.0 / (source.levels - 1))).astype(np.uint8)
    try:
        return to_uint8(decode_latents(image, Path(source.files[0]).parent))
    except ValueError:
        return to_uint8(image[..., : 3 if image.shape[-1] >= 3 else 1] / 3)
