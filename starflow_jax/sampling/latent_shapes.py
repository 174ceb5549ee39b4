"""The autoencoder of a model of latents: sizes and lengths in pixels, encoding of given frames, decoding of frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.models.autoencoders import Autoencoder, kept_autoencoder, load_autoencoder
from starflow_jax.models.autoencoders.decoding import FrameDecoder, decode_in_batches, encode_frames
from starflow_jax.models.autoencoders.protocol import Params


@dataclasses.dataclass(frozen=True, eq=False)
class RunAutoencoder:
    """The autoencoder that decodes the samples of a run and encodes the frames that videos begin with."""

    autoencoder: Autoencoder
    params: Params

    @property
    def stride(self) -> int:
        """Pixels along each side of a latent position."""
        return self.autoencoder.stride

    @property
    def pixel_channels(self) -> int:
        """Channels of an image."""
        return self.autoencoder.pixel_channels

    def pixel_frames(self, latent: int) -> int:
        """Frames of pixels that the first `latent` latent frames are decoded to."""
        return 1 + self.autoencoder.frame_stride * (latent - 1) if latent else 0

    def latent_frames(self, frames: int) -> int:
        """Whole latent frames in `frames` frames of pixels, rounded down."""
        return 1 + (frames - 1) // self.autoencoder.frame_stride if frames else 0

    def pixel_shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [(t,) H, W, C] of what latents of shape [(T,) rows, columns, c] are decoded to."""
        *frames, rows, columns, _ = latents
        return (*map(self.pixel_frames, frames), rows * self.stride, columns * self.stride, self.pixel_channels)

    def encode(self, pixels: UInt8[np.ndarray, "T H W C"]) -> Float[np.ndarray, "t rows columns c"]:
        """Encodes one video uint8 [T, H, W, C] to latents float32 [t, h, w, c], T = `pixel_frames(t)`."""
        return encode_frames(self.autoencoder, self.params, pixels.astype(np.float32) / 127.5 - 1.0)

    def decode(self, latents: Float[np.ndarray, "B *T rows columns c"]) -> Float[np.ndarray, "B *t H W C"]:
        """Decodes latents float32 [B, (T,) h, w, c] to pixels float32 [B, (t,) H, W, C] in [-1, 1].

        Raises:
          ValueError: latents of another number of channels.
        """
        actual, channels = latents.shape[-1], self.autoencoder.channels
        check(
            actual == channels,
            f"latents must be of the {channels} channels of their autoencoder, got {actual}",
        )
        return decode_in_batches(self.autoencoder, self.params, latents)

    def decoder(self) -> FrameDecoder:
        """A decoder that takes one latent frame at a time."""
        return FrameDecoder(self.autoencoder, self.params)


def autoencoder_for(config: ExperimentConfig) -> RunAutoencoder | None:
    """The autoencoder that decodes samples of a run, see `run_autoencoder`; None for a run on pixels.

    Raises:
      ValueError: see `run_autoencoder`; or its latents have other channels than the flow.
    """
    autoencoder = run_autoencoder(config.data)
    if autoencoder is not None:
        actual, channels = autoencoder.autoencoder.channels, config.flow.channels
        named = config.data.decoder or config.data.autoencoder or config.data.path
        check(actual == channels, f"decoder {named} must decode latents of {channels} channels, got {actual}")
    return autoencoder


def run_autoencoder(data: DataConfig) -> RunAutoencoder | None:
    """The autoencoder that decodes samples: `data.decoder`, else that of the training; None for a model of pixels.

    Raises:
      ValueError: no autoencoder is named or stored with the latents, or it cannot be read.
    """
    if not data.on_latents:
        return None
    decoder = data.decoder or data.autoencoder
    path = Path(decoder) if decoder is not None else None
    if path is None and data.path is not None:
        path = kept_autoencoder(Path(data.path))
    check(
        path is not None,
        f"latents can be seen only with their autoencoder, and {data.path or 'a mixture'} has none: name it "
        "(--decoder, or a model folder)",
    )
    assert path is not None
    return RunAutoencoder(*load_autoencoder(path))
