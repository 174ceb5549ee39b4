"""The frames that videos begin with: an image, a clip to continue, or a clip to translate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.media import Clip, read_video
from starflow_jax.media.reading import MAX_FRAMES
from starflow_jax.models.text.templates import EXTEND, TRANSLATE
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.solvers import SlidingWindow


@dataclasses.dataclass(frozen=True, eq=False)
class GivenFrames:
    """The length of the videos, and the frames that they begin with.

    Attributes:
      frames: T of the whole video, in frames of the flow.
      prefix: uint8 [P, H, W, C], or float32 latents [P, h, w, c] for a model of latents; None for no given frames.
      word: the word that goes before every caption, None for none.
      fps: the frame rate of the given file; None where there is no file or no rate in it.
      pixels: uint8 [Q, H, W, C], the frames that latents in `prefix` were encoded from; else None.
    """

    frames: int
    prefix: np.ndarray | None = None
    word: str | None = None
    fps: float | None = None
    pixels: np.ndarray | None = None


def known_words(config: ExperimentConfig) -> tuple[str, ...]:
    """The words that captions may begin with, `EXTEND` and `TRANSLATE` among them where the run was trained with such
    captions; a pretrained text encoder reads both."""
    if config.data.text_encoder is not None:
        return (EXTEND, TRANSLATE)
    return () if config.text is None else config.text.vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class FrameReader:
    """Reads the given frames of requests for one model.

    Attributes:
      config: the experiment; autoencoder: the one that decodes its latents, None for a model of pixels.
      size: rows and columns of the videos, in positions of the flow.
      window: the sliding window of long videos.
      warn: called with a message where frames of a clip are not used.
      max_frames: of a clip that is read.
    """

    config: ExperimentConfig
    autoencoder: RunAutoencoder | None
    size: tuple[int, int]
    window: SlidingWindow
    warn: Callable[[str], None]
    max_frames: int = MAX_FRAMES

    def read(self, request: SampleRequest) -> GivenFrames:
        """Reads the file that a request names, scaled to `size`, and determines the length of the videos.

        The request counts frames of pixels; an autoencoder of videos makes fewer latent frames of them.

        Raises:
          RequestError: a length that the given frames or the model do not allow.
          ValueError: a file that cannot be read, or has too many frames.
        """
        paths = {"image": request.image, "continued": request.continued, "video": request.video}
        given = {name: path for name, path in paths.items() if path is not None}
        trained = self.config.data.frames
        frames = self._flow_frames(request.frames)
        if not given:
            return GivenFrames(frames or trained)
        [(name, path)] = given.items()
        clip = self._clip(name, path)
        available = len(clip.frames) if self.autoencoder is None else self.autoencoder.latent_frames(len(clip.frames))
        if name == "video":
            return self._translation(clip, frames, available)
        frames = frames or trained
        used = self._pixel_frames(min(available, 1 if name == "image" else self.window.num_context))
        images = clip.frames[:1] if name == "image" else clip.frames[-used:]
        if name == "continued" and used < len(clip.frames):
            self.warn(
                f"the last {used} of the {len(clip.frames)} frames of {path} are given: "
                "the context of a window (--context), in whole frames of the flow"
            )
        total = self._pixel_frames(frames)
        template = f"{{frames}} must be above the {{0}} frames given by {{{name}}}, got {{1}}"
        require(total > len(images), template, len(images), total)
        if name == "image":
            return self._given_frames(frames, images, None, None)
        return self._given_frames(frames, images, EXTEND if EXTEND in known_words(self.config) else None, clip.fps)

    def _translation(self, clip: Clip, frames: int | None, available: int) -> GivenFrames:
        template = "{video} needs a run trained with {0} captions, got one without that word"
        require(TRANSLATE in known_words(self.config), template, TRANSLATE)
        frames = self._translation_length(frames, available)
        return self._given_frames(frames, clip.frames[: self._pixel_frames(frames // 2)], TRANSLATE, clip.fps)

    def _given_frames(self, frames: int, images: np.ndarray, word: str | None, fps: float | None) -> GivenFrames:
        if self.autoencoder is None:
            return GivenFrames(frames, images, word, fps)
        return GivenFrames(frames, self.autoencoder.encode(images), word, fps, images)

    def _pixel_frames(self, frames: int) -> int:
        return frames if self.autoencoder is None else self.autoencoder.pixel_frames(frames)

    def _flow_frames(self, frames: int | None) -> int | None:
        """The requested frames of pixels as frames of the flow."""
        if frames is None or self.autoencoder is None:
            return frames
        latent = self.autoencoder.latent_frames(frames)
        require(
            self.autoencoder.pixel_frames(latent) == frames,
            "{frames} must be 1 plus a multiple of {0} for this autoencoder, got {1}",
            self.autoencoder.autoencoder.frame_stride,
            frames,
        )
        return latent

    def _clip(self, name: str, path: Path) -> Clip:
        channels = self.config.flow.channels
        stride = 1
        if self.autoencoder is not None:
            stride, channels = self.autoencoder.stride, self.autoencoder.pixel_channels
        template = f"{{{name}}} needs a run on grey or RGB pixels, got one on {{0}} channels"
        require(channels in (1, 3), template, channels)
        size, background = (self.size[0] * stride, self.size[1] * stride), self.config.data.background
        return read_video(path, size=size, channels=channels, max_frames=self.max_frames, background=background)

    def _translation_length(self, frames: int | None, available: int) -> int:
        """Frames of source and target together: equally long, and together no longer than trained on."""
        trained = self.config.data.frames
        require(trained >= 2, "{video} needs a run on clips of at least 2 frames, got {0}", trained)
        most = 2 * min(trained // 2, available)
        if frames is None:
            return most
        fits = frames % 2 == 0 and frames <= most
        if self.autoencoder is not None and self.autoencoder.autoencoder.frame_stride > 1:
            step = self.autoencoder.autoencoder.frame_stride
            require(
                fits,
                "{frames} must be {0} plus a multiple of {1} and at most {2} with {video} (the source, then as many "
                "new frames of the flow), got {3}",
                1 + step,
                2 * step,
                self.autoencoder.pixel_frames(most),
                self.autoencoder.pixel_frames(frames),
            )
        require(
            fits,
            "{frames} must be even and at most {0} with {video} (the source, then as many new ones; the run was "
            "trained on {1}, the source has {2}), got {3}",
            most,
            trained,
            available,
            frames,
        )
        return frames
