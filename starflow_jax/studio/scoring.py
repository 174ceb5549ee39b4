"""The likelihood of a picture or clip: bits/dim, the surprise of every token, and the class by the Bayes rule.

Pictures without captions are scored as `starflow study` does, clips and captioned pictures as `starflow score` does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.data import bits_per_dim
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.likelihood_study import StudiedRun, posterior
from starflow_jax.evaluation.applications.ratio_maps import token_map
from starflow_jax.evaluation.likelihood.bayes_classifier import classify
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.likelihood.scored_source import scored_level
from starflow_jax.evaluation.likelihood.video_scores import Clip, ClipLikelihood, file_pixels, score_clips
from starflow_jax.sampling.videos.video_plan import caption_reader, later_text, text_states
from starflow_jax.studio.drawing import check_caption
from starflow_jax.studio.opened_model import OpenedModel
from starflow_jax.training.step.inputs import condition

DRAWS = 4  # of the noise, for every picture or clip
MOST_CAPTIONS = 64
MOST_SCORED_FRAMES = 128  # of a clip
_STREAM = 1  # of the noise of the example


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """The likelihood of one picture or clip.

    Attributes:
      pixels: uint8 [T, H, W, C], as the model sees them, 0..255; T is 1 for a picture.
      bits_per_dim: under `condition`, the mean over draws of the noise, and its standard error (NaN for one draw).
      error: that standard error; NaN where it is not known.
      surprise: float64 [T, h, w], bits/dim of every token; their mean is `bits_per_dim`.
      condition: the class or caption that it is scored under, empty for none: that which the Bayes rule chooses.
      choices: the conditions that were compared with their probabilities, the likeliest first; empty for none.
      bits: -log2 p of all its pixels: of a picture the class summed out, of a clip or with captions under `condition`.
      draws: of the noise.
    """

    pixels: np.ndarray
    bits_per_dim: float
    error: float
    surprise: np.ndarray
    condition: str
    choices: tuple[tuple[str, float], ...]
    bits: float
    draws: int

    @property
    def frames(self) -> np.ndarray:
        """Bits/dim of every frame given those before it, float64 [T]."""
        return self.surprise.mean(axis=(1, 2))


def is_plain(model: OpenedModel) -> bool:
    """Whether examples are still pictures without captions."""
    return not model.videos and not model.config.reads_captions


def score(
    model: OpenedModel,
    pixels: np.ndarray,
    captions: Sequence[str] = (),
    *,
    seed: int = 0,
    report: Callable[[int], None] = lambda amount: None,
) -> Score:
    """Scores one picture or clip.

    Args:
      model: on pixels.
      pixels: uint8 [T, H, W, C], 0..255, of the size of the model; of a picture the first frame counts.
      captions: of a model that reads captions: those that the Bayes rule compares, all equally likely; none for the
        empty caption.
      seed: of the noise.
      report: called with 1 after each caption, and after a picture.

    Raises:
      ValueError: captions that the model cannot read, are too long or too many; too many frames; a negative seed.
    """
    check_integer("seed", seed, minimum=0)
    if is_plain(model):
        found = _picture(model, pixels[:1], seed)
        report(1)
        return found
    check(
        len(pixels) <= MOST_SCORED_FRAMES or not model.videos,
        f"a scored clip must have at most {MOST_SCORED_FRAMES} frames, got {len(pixels)}",
    )
    captions = list(dict.fromkeys(text for caption in captions for text in check_caption(caption) or ()))
    check(len(captions) <= MOST_CAPTIONS, f"captions must be at most {MOST_CAPTIONS}, got {len(captions)}")
    check(model.config.reads_captions or not captions, "captions need a run that reads captions, got one without")
    return _clip(model, pixels if model.videos else pixels[:1], captions or [""], seed, report)


def plain_bits_per_dim(model: OpenedModel, images: np.ndarray, levels: int, seed: int) -> float:
    """Bits/dim of a clip or captioned picture under the empty caption or no class, with as many draws as `score`.

    Args:
      images: integers [T, H, W, C], 0 .. `levels` - 1; seed: of the noise.
    """
    return _scored(model, _clips(model, images, levels, [""])[0], seed).bits_per_dim


def levels_of(model: OpenedModel, pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Frames uint8 0..255 as integers of the model's data, and the number of their levels."""
    return file_pixels(pixels, model.config.data)


def studied(model: OpenedModel, source: ArraySource, *, seed: int = 0) -> StudiedRun:
    """The run with some pictures, as the functions of `starflow study` take it."""
    level = scored_level(model.config, None)
    return StudiedRun(model.run.params, model.config, source, source, jax.random.key(seed), DRAWS, level)


def array_source(model: OpenedModel, pixels: np.ndarray, levels: int) -> ArraySource:
    """Pictures, integers uint8 [n, H, W, C], as a source with the classes of the model."""
    return ArraySource("pictures", pixels, np.zeros(len(pixels), np.int32), levels, max(len(model.classes), 1))


def _picture(model: OpenedModel, pixels: np.ndarray, seed: int) -> Score:
    images, levels = levels_of(model, pixels)
    source = array_source(model, images, levels)
    run = studied(model, source, seed=seed)
    log_p = run.class_log_probs(source, _STREAM)
    chosen = int(classify(log_p)[0])
    key = jax.random.fold_in(run.key, _STREAM)
    tokens = token_map(
        run.params, model.config.flow, source, key, np.zeros(1, np.int32), np.full(1, chosen, np.int32), draws=DRAWS,
        noise_level=run.noise_level,
    )  # fmt: skip
    surprise = bits_per_dim(tokens * math.log(2.0), model.config.flow.token_channels, levels)
    of_draws = bits_per_dim(log_p[:, 0, chosen], images[0].size, levels)
    choices = _ranked(model.classes, posterior(log_p)[0]) if model.classes else ()
    return Score(
        pixels=pixels,
        bits_per_dim=float(np.mean(of_draws)),
        error=standard_error(of_draws),
        surprise=np.asarray(surprise),
        condition=choices[0][0] if choices else "",
        choices=choices,
        bits=float(run.bits(log_p, source)[0]),
        draws=DRAWS,
    )


def _clip(
    model: OpenedModel, pixels: np.ndarray, captions: Sequence[str], seed: int, report: Callable[[int], None]
) -> Score:
    images, levels = levels_of(model, pixels)
    scored = []
    for clip in _clips(model, images, levels, captions):
        scored.append(_scored(model, clip, seed))
        report(1)
    log_p = np.asarray([-math.log(2.0) * one.bits_per_dim * images.size for one in scored])
    best = int(np.argmax(log_p))
    shares = posterior(log_p[None, None])[0]
    chosen: ClipLikelihood = scored[best]
    return Score(
        pixels=pixels,
        bits_per_dim=chosen.bits_per_dim,
        error=chosen.draw_error,
        surprise=chosen.tokens.mean(axis=0),
        condition=captions[best],
        choices=_ranked(captions, shares) if len(captions) > 1 else (),
        bits=chosen.bits_per_dim * images.size,
        draws=DRAWS,
    )


def _scored(model: OpenedModel, clip: Clip, seed: int) -> ClipLikelihood:
    """One clip alone, so that all captions are compared on the same noise by the same program."""
    key = jax.random.key(seed)
    return score_clips(model.run.params, model.config, [clip], key, draws=DRAWS, batch_size=1)[0]


def _clips(model: OpenedModel, images: np.ndarray, levels: int, captions: Sequence[str]) -> list[Clip]:
    """The same frames under each caption."""
    config = model.config
    if not config.reads_captions:
        none = condition(jnp.full(1, -1, jnp.int32), config.flow)
        return [Clip("clip", "", images, levels, None if none is None else np.asarray(none)[0])]
    reader = caption_reader(config)
    states, later = text_states(config, captions, reader), later_text(config, captions, reader)
    return [
        Clip(
            "clip", caption, images, levels, np.asarray(states[row]), None if later is None else np.asarray(later[row])
        )
        for row, caption in enumerate(captions)
    ]


def _ranked(names: Sequence[str], shares: np.ndarray) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-shares, kind="stable")
    return tuple((names[index], float(shares[index])) for index in order)
