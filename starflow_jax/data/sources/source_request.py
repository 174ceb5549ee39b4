"""The request that opens a source: the split, and the inputs of the experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from starflow_jax.core.choices import Split
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.data.decoding.buckets import image_size
from starflow_jax.data.sources.captioning import Captioner
from starflow_jax.models.text.protocol import CaptionReader


@dataclass(frozen=True)
class SourceRequest:
    """The arguments that open a source, besides its configuration.

    Attributes:
      split: "train" or "test"; augmentation applies to the former alone.
      flow: the flow that reads the examples, if any: its image_size and channels are those of decoded images.
      text: the vocabulary of the experiment.
      noise_std: standard deviation of the training noise, for caption templates that state it.
      label_drop: probability that a source of text states replaces them by those of the empty caption.
      caption_reader: converts captions to token ids; None where the experiment reads no captions.
    """

    split: Split
    flow: FlowConfig | None = None
    text: TextConfig | None = None
    noise_std: float = 0.0
    label_drop: float = 0.0
    caption_reader: CaptionReader | None = None

    @property
    def training(self) -> bool:
        """Whether this is the training split."""
        return self.split == "train"

    def captioner(self, config: SourceConfig, fps: float | None = 0.0) -> Captioner | None:
        """Chooses and encodes captions; None where the experiment reads none. For `fps` see `Captioner`."""
        if self.caption_reader is None:
            return None
        return Captioner(self.caption_reader, config.captions, self.noise_std, fps)

    def channels(self, config: SourceConfig) -> int:
        """Channels of decoded images.

        Raises:
          ValueError: the flow reads neither grey nor RGB images.
        """
        channels = 3 if self.flow is None else self.flow.channels
        check(channels in (1, 3), f"flow.channels must be 1 (grey) or 3 (RGB) to read {config.source}, got {channels}")
        return channels

    def image_shapes(self, config: SourceConfig) -> dict[str, tuple[int, int]]:
        """(rows, columns) of each aspect-ratio bucket by its name "width:height"; without buckets, one shape.

        Raises:
          ValueError: there is no flow.
        """
        if self.flow is None:
            raise ValueError(f"data.source {config.source!r} needs a flow, whose image_size says what is read")
        height, width = self.flow.image_shape
        if not config.aspect_ratios:
            divisor = math.gcd(height, width)
            return {f"{width // divisor}:{height // divisor}": (height, width)}
        target = round(math.sqrt(height * width))
        multiple = config.multiple or self.flow.patch_size
        return {ratio: image_size(target, ratio, multiple) for ratio in config.aspect_ratios}

    def index_file(self, config: SourceConfig) -> Path | None:
        """The index file of this split; every split has a separate one."""
        if config.index is None:
            return None
        path = Path(config.index)
        return path.with_name(f"{path.stem}-{self.split}{path.suffix or '.json'}")
