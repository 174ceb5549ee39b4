"""Configuration of the data: sources, reading, augmentation and noise."""

from __future__ import annotations

import dataclasses
from typing import Literal

from starflow_jax.core.choices import Dtype
from starflow_jax.core.config.checks import check, check_addresses, check_integer, check_real
from starflow_jax.core.config.source_config import ComponentConfig, SourceConfig


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """A source or a mixture of sources, how it is read, and the noise that is added to it.

    Attributes (besides those of a source):
      mixture: the sources of source "mixture". Every batch comes from one of them, sampled by their weights.
      threads, workers: number of threads or of processes that read ahead; 0 and 0 reads on demand. They affect speed,
        not the data.
      prefetch: batches that the threads, or each process, read ahead.
      noise: "uniform" spreads each integer level over its unit interval (exact bits/dim); "gaussian" adds
        noise_std times a standard normal to pixels in [-1, 1], to latents or to vectors; "none", of vectors alone, adds
        nothing.
      noise_std: sigma_n of Gaussian noise, in the units of those pixels or latents; for a flow with `flow.noise_levels`
        the highest of them.
      label_drop: probability that a label (-1) or a caption (the empty one) is dropped, for guidance.
      warp: probability that a training image is distorted (`training.step.warp`); pixels stay integers, and images are
        not distorted in evaluation.
      warp_strength: standard deviation in pixels of the displacement of the distortion's control points.
      autoencoder: .npz file or folder of a frozen autoencoder (`models.autoencoders`) that encodes images or clips
        inside the training step; the flow's image_size and channels are then those of the latents.
      autoencoder_dtype: its compute dtype in the training step, "float32" or "bfloat16".
      decoder: the decoder of latents that replaces that of their own autoencoder, such as a folder written by
        `starflow finetune-decoder`.
      text_encoder: folder of a frozen text encoder, or a label table NAME.vocab (`models.text`), that encodes captions
        inside the training step. For latents, which have precomputed text states, it encodes only captions of samples.
    """

    mixture: tuple[ComponentConfig, ...] = ()
    threads: int = 0
    workers: int = 0
    prefetch: int = 2
    noise: Literal["uniform", "gaussian", "none"] = "uniform"
    noise_std: float = 0.0
    label_drop: float = 0.0
    warp: float = 0.0
    warp_strength: float = 0.5
    autoencoder: str | None = None
    autoencoder_dtype: Dtype = "float32"
    decoder: str | None = None
    text_encoder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_addresses(self, "autoencoder", "decoder", "text_encoder")
        self._check_mixture()
        for name in ("threads", "workers"):
            check_integer(name, getattr(self, name), minimum=0)
        check_integer("prefetch", self.prefetch, minimum=1)
        check(
            not (self.threads and self.workers),
            f"threads or workers must be 0, got threads={self.threads} and workers={self.workers}",
        )
        check_real("noise_std", self.noise_std, minimum=0.0)
        check_real("label_drop", self.label_drop, minimum=0.0)
        check(self.label_drop < 1.0, f"label_drop must be below 1, got {self.label_drop}")
        check_real("warp", self.warp, minimum=0.0)
        check(self.warp <= 1.0, f"warp must be at most 1, got {self.warp}")
        check(not (self.warp and self.frames), f"warp must be 0 for clips, got {self.warp}")
        check_real("warp_strength", self.warp_strength, minimum=0.0)
        check(
            (self.noise == "gaussian") == (self.noise_std > 0),
            f"noise_std must be above 0 for noise 'gaussian' and 0 for any other, got noise={self.noise!r} "
            f"and noise_std={self.noise_std}",
        )
        vectors = any(part.traits.vectors for part in self.parts)
        check(
            self.noise in (("none", "gaussian") if vectors else ("uniform", "gaussian")),
            f"noise must be 'none' or 'gaussian' for vectors, and 'uniform' or 'gaussian' for pictures, got "
            f"{self.noise!r} for source {self.source!r}",
        )
        check(not (vectors and self.warp), f"warp must be 0 for vectors, got {self.warp}")
        if self.has_latents:
            check(self.noise == "gaussian", f"noise must be 'gaussian' for latents, got {self.noise!r}")
            check(not self.warp, f"warp must be 0 for latents, got {self.warp}")
            check(
                self.autoencoder is None,
                f"autoencoder must be None for latents, which are encoded already, got {self.autoencoder!r}",
            )
        if self.autoencoder is not None:
            check(bool(self.autoencoder), "autoencoder must be None or the path of a file, got ''")
            check(self.noise == "gaussian", f"noise must be 'gaussian' with an autoencoder, got {self.noise!r}")
            check(not self.warp, f"warp must be 0 with an autoencoder, got {self.warp}")

        check(self.text_encoder != "", "text_encoder must be None or the path of a folder, got ''")
        check(
            self.decoder is None or self.on_latents,
            f"decoder requires latents, precomputed or computed by autoencoder, got decoder={self.decoder!r}",
        )

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Augmentations that are configured but have no effect on latents, which are already encoded: "flip=0.5".

        They are accepted because one experiment file serves both `starflow encode` and training.
        """
        parts = [part for part in self.parts if part.traits.latents]
        return tuple(dict.fromkeys(option for part in parts for option in part.augmentations))

    @property
    def on_latents(self) -> bool:
        """Whether the flow reads latents (precomputed, or encoded inside the training step) instead of pixels."""
        return self.autoencoder is not None or self.has_latents

    @property
    def has_latents(self) -> bool:
        """Whether a source holds latents that were encoded before."""
        return any(part.traits.latents for part in (self, *self.mixture))

    @property
    def parts(self) -> tuple[SourceConfig, ...]:
        """The sources of a mixture, or the one source."""
        return self.mixture or (self,)

    def _check_mixture(self) -> None:
        check(
            self.traits.mixture == (len(self.mixture) > 0),
            f"mixture requires source 'mixture', got source={self.source!r} and {len(self.mixture)} sources",
        )
        if not self.traits.mixture:
            return
        check(
            sum(component.weight for component in self.mixture) > 0,
            f"mixture must have weights that sum to more than 0, got {[c.weight for c in self.mixture]}",
        )
        longest = max(component.frames for component in self.mixture)
        check(
            self.frames == longest,
            f"frames must be the largest number of frames in the mixture, {longest}, got {self.frames}",
        )
        for name in ("aspect_ratios", "flip", "drop_first", "fps"):
            check(
                not getattr(self, name),
                f"{name} must be set on the sources of the mixture, got {getattr(self, name)!r}",
            )
