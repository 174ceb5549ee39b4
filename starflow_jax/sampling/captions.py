"""Captions of a request: selects those that a model can read, and computes their text states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.sampling.videos.video_plan import caption_reader, text_states
from starflow_jax.training.step.frozen_text import FrozenText


@dataclasses.dataclass(frozen=True, eq=False)
class ReadCaptions:
    """Captions of images with the text encoder that reads them.

    Attributes:
      config: the experiment; reader: its text encoder.
      captions: the k captions that the model can read.
      left_out: (caption, reason) of every caption that the model cannot read.
    """

    config: ExperimentConfig
    reader: FrozenText
    captions: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]

    def states(self, captions: Sequence[str]) -> Float[np.ndarray, "n L text_dim"]:
        """Text states of some of the captions, or of the empty one, float32 [n, L, text_dim]."""
        return text_states(self.config, captions, self.reader)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCaptions:
    """Captions of images with their text states.

    Attributes:
      captions: the k captions that the model can read.
      text: float32 [k, L, text_dim], their states.
      null: float32 [1, L, text_dim], the states of the empty caption.
      left_out: (caption, reason) of every caption that the model cannot read.
    """

    captions: tuple[str, ...]
    text: np.ndarray
    null: np.ndarray
    left_out: tuple[tuple[str, str], ...]


def readable_captions(
    captions: Sequence[str], reader: FrozenText, warn: Callable[[str], None]
) -> tuple[list[int], dict[int, str]]:
    """Separates the captions that a model can read from those it cannot.

    Args:
      captions: the captions.
      reader: the text encoder of the model.
      warn: called with a message for every caption that is left out.

    Returns:
      The indices of the captions that can be read, and the reason for every other index.

    Raises:
      RequestError: there is one caption alone, and the model cannot read it.
    """
    readable, unreadable = [], {}
    for index, caption in enumerate(captions):
        try:
            reader.encoder.ids([caption])
        except ValueError as error:
            reason = " ".join(str(error).split()).removesuffix(".")
            if len(captions) == 1:
                raise RequestError("{0}", reason) from error
            unreadable[index] = reason
            warn(f"skipped caption {index + 1} of {len(captions)}: {reason}")
        else:
            readable.append(index)
    return readable, unreadable


def image_captions(
    config: ExperimentConfig,
    captions: Sequence[str] | None,
    *,
    labelled: bool,
    workdir: Path,
    warn: Callable[[str], None],
) -> ImageCaptions | None:
    """The captions of images with all their text states; see `read_image_captions`."""
    read = read_image_captions(config, captions, labelled=labelled, workdir=workdir, warn=warn)
    if read is None:
        return None
    return ImageCaptions(read.captions, read.states(read.captions), read.states([""]), read.left_out)


def read_image_captions(
    config: ExperimentConfig,
    captions: Sequence[str] | None,
    *,
    labelled: bool,
    workdir: Path,
    warn: Callable[[str], None],
) -> ReadCaptions | None:
    """Reads the captions of images; None for images of classes, or without a condition.

    Args:
      config: the experiment.
      captions: None for no captions; a model with a text encoder then reads the empty one.
      labelled: whether the request names a class.
      workdir: of the run, for messages.
      warn: as for `readable_captions`.

    Raises:
      RequestError: captions for a model that reads none, or none of which can be read.
      ValueError: the text encoder cannot be read.
    """
    if captions is None and (labelled or config.data.text_encoder is None):
        return None
    if config.text is None and config.data.text_encoder is None:
        remedy = "; {text_encoder} reads them" if config.flow.text_dim else ""
        raise RequestError(f"{{captions}} cannot be used with the run in {{0}}, which has no captions{remedy}", workdir)
    captions = list(captions or [""])
    reader = caption_reader(config)
    readable, unreadable = readable_captions(captions, reader, warn)
    require(len(readable) > 0, "{captions} must contain a caption that the run can read, got none")
    read = tuple(captions[index] for index in readable)
    left_out = tuple((captions[index], reason) for index, reason in unreadable.items())
    return ReadCaptions(config, reader, read, left_out)
