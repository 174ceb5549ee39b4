"""Chooses the caption of an example, applies the templates, and encodes it as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from starflow_jax.core.config.source_config import CaptionConfig
from starflow_jax.data.sources.image_collection import Captions
from starflow_jax.models.text.protocol import CaptionReader
from starflow_jax.models.text.templates import EXTEND, caption_prompts, prefixed


@dataclass(frozen=True)
class Captioner:
    """Chooses captions, applies templates to them, and encodes them.

    Attributes:
      encoder: converts captions to ids. Unknown words, and words beyond its length, are left out.
      config: weights of the kinds of captions, and the templates.
      noise_std: sigma_n for the noise template; fps: frames per second for the fps template, 0 for still images; None
        takes the rate of the example.
    """

    encoder: CaptionReader
    config: CaptionConfig
    noise_std: float
    fps: float | None = 0.0

    def choose(self, captions: Captions, rng: np.random.Generator) -> str:
        """Samples a kind by weight among those of the example, then one of its captions uniformly; "" for none."""
        weights = self.kinds_of(captions)
        if not weights:
            return ""
        shares = np.asarray(list(weights.values()))
        texts = captions[str(rng.choice(list(weights), p=shares / shares.sum()))]
        return texts[int(rng.integers(len(texts)))]

    def kinds_of(self, captions: Captions) -> dict[str, float]:
        """The kinds that can be chosen among the captions of an example, in their order, with their weights."""
        weights = dict(self.config.kinds) or dict.fromkeys(captions, 1.0)
        return {kind: weights[kind] for kind in sorted(captions) if captions[kind] and weights.get(kind, 0.0) > 0}

    def prompt(self, caption: str, aspect_ratio: str, fps: float = 0.0, extended: bool = False) -> str:
        """The caption with its templates applied.

        Args:
          caption: the caption; aspect_ratio: "width:height" of the image.
          fps: frame rate of the example, used where the captioner has none; extended: whether the clip begins after
            its first frame.
        """
        rate = fps if self.fps is None else self.fps
        return caption_prompts(
            [prefixed(caption, EXTEND if extended else None)],
            fps=round(rate) if self.config.fps else None,
            noise_std=self.noise_std if self.config.noise_level else None,
            aspect_ratio=aspect_ratio if self.config.aspect else None,
            chat_template=self.config.chat,
        )[0]

    def ids(self, prompt: str) -> np.ndarray:
        """Ids int32 [L]."""
        return self.encoder.known_ids([prompt])[0]
