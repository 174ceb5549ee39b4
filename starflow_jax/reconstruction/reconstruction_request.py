"""The request of a training of an autoencoder or of a decoder, as one checked value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.checks import check


@dataclasses.dataclass(frozen=True)
class TrainAutoencoderRequest:
    """A request to train a new autoencoder in a folder, or to resume training there.

    Attributes:
      experiment: with `network`.
      workdir: new or empty folder, or the folder of a run of the same experiment.
      progress: whether to show a progress bar, or lines of text where standard error is not a terminal.

    Raises:
      ValueError: an experiment on the decoder of an autoencoder that exists.
    """

    experiment: AutoencoderExperiment
    workdir: Path
    progress: bool = True

    def __post_init__(self) -> None:
        check(
            self.experiment.network is not None,
            "network must be given to train an autoencoder, got None (starflow finetune-decoder trains the decoder of "
            "an existing one)",
        )


@dataclasses.dataclass(frozen=True)
class FinetuneDecoderRequest:
    """A request to fine-tune the decoder of an autoencoder on noisy latents, or to resume that.

    Attributes:
      experiment: with `autoencoder`; workdir, progress: as of `TrainAutoencoderRequest`.

    Raises:
      ValueError: an experiment on a new autoencoder.
    """

    experiment: AutoencoderExperiment
    workdir: Path
    progress: bool = True

    def __post_init__(self) -> None:
        check(
            self.experiment.network is None,
            "network must be None to fine-tune a decoder, got the network of a new autoencoder",
        )
