"""Drawing images or videos from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

import jax
import numpy as np

from starflow_jax.api.run import Run
from starflow_jax.core.choices import Denoise
from starflow_jax.core.config.checks import check
from starflow_jax.sampling import images
from starflow_jax.sampling.images import Samples, class_labels
from starflow_jax.sampling.videos.draw import Videos, generate
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.solvers import AnySolver, named_solver


class SampleOptions(TypedDict, total=False):
    """Keyword arguments of `sample`; what is left out has the value of `config.sample`.

    Attributes:
      solver: how the blocks are inverted: an object such as `Jacobi(block=16)`, or a name such as "jacobi".
      guidance: the weight w >= 0 of classifier-free guidance, 0 for none.
      temperature: the factor of the noise z.
      attention_temperature: divides attention logits; 1 changes nothing.
      denoise: how the training noise is removed: "none", "score" or "learned".
      batch_size: samples drawn at a time.
      frames: of videos: T, frames (of latents, where the flow is of latents), given ones included.
      prefix: of videos: the frames that they begin with, [P, H, W, C] or [n, P, H, W, C], uint8 or float in [-1, 1].
    """

    solver: AnySolver | str
    guidance: float
    temperature: float
    attention_temperature: float
    denoise: Denoise
    batch_size: int
    frames: int
    prefix: np.ndarray


def sample(
    run: Run,
    num: int | None = None,
    *,
    label: int | Sequence[int] | None = None,
    captions: str | Sequence[str] | None = None,
    seed: int = 0,
    **options: Unpack[SampleOptions],
) -> Samples | Videos:
    """Draws images, or videos from a model of videos.

    Sample i depends on the seed, on i and on its label or caption alone.

    Args:
      run: the model.
      num: the number of samples; of captions, the number for each. None means `config.sample.num`, or one for each
        label where several are given.
      label: the class of all samples, or one class for each; -1 for none. None takes the classes in turn.
      captions: one or more captions. None draws without a caption.
      seed: of the noise.
      **options: see `SampleOptions`.

    Returns:
      `Samples` (`images`, uint8 [n, H, W, C]) or `Videos` (`videos`, uint8 [n, T, H, W, C]).

    Raises:
      ValueError: an argument that the model cannot be sampled with; the message names it.
    """
    config = run.config
    check(num is None or num >= 1, f"num must be at least 1, got {num}")
    check(label is None or captions is None, "label and captions exclude each other, got both")
    check(captions is None or run.text is not None, "captions must be None for a model that reads none")
    given: dict = dict(options)
    if isinstance(solver := given.get("solver"), str):
        given["solver"] = named_solver(solver, config.flow)
    key, texts = jax.random.key(seed), [captions] if isinstance(captions, str) else list(captions or [""])
    unguided = captions is None or not any(text.strip() for text in texts)
    repeats = config.sample.num if num is None else num
    if config.data.frames:
        check(label is None, f"label must be None for a model of videos, got {label}")
        if unguided:
            given.setdefault("guidance", 0.0)  # the weight of the configuration is meant for captions
        each = [text for text in texts for _ in range(repeats)]
        return generate(run.params, config, key, each, reader=run.text, **given)
    for name in ("frames", "prefix"):
        check(name not in given, f"{name} must be left out for a model of still images")
    if captions is not None:
        rows = np.repeat(np.arange(len(texts)), repeats)
        given |= {"text": text_states(config, texts, run.text)[rows], "null": text_states(config, [""], run.text)}
        labels = np.full(len(rows), -1, np.int32)
    elif isinstance(label, Sequence | np.ndarray):
        check(num is None or num == len(label), f"num must be the {len(label)} of label, got {num}")
        labels = np.asarray(label)
    else:
        labels = class_labels(config, repeats) if label is None else np.full(repeats, label, np.int32)
    if unguided and not (labels >= 0).any():
        given.setdefault("guidance", 0.0)
    return images.sample(run.params, config, key, labels, **given)
