"""Caption templates of STARFlow models.

The optional templates are applied in this order::

    caption -> frame rate -> noise level -> aspect ratio -> chat turn

The templates are part of the released models, so that every character matters.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

# First words of the captions of special clips (specification, section 5): a clip that continues an earlier one, and a
# clip whose first half is the source of a video-to-video translation.
EXTEND, TRANSLATE = "(extend)", "(v2v)"

_ASPECT_RATIO = re.compile(r"[1-9]\d*:[1-9]\d*")


def prefixed(caption: str, word: str | None) -> str:
    """The caption with the first word `word`, added if missing; unchanged where `word` is None."""
    if word is None or caption.split()[:1] == [word]:
        return caption
    return f"{word} {caption}".strip()


def caption_prompts(
    captions: Sequence[str],
    *,
    fps: float | Sequence[float] | Num[Any, "..."] | None = None,
    noise_std: float | Sequence[float | Sequence[float]] | Num[Any, "..."] | None = None,
    aspect_ratio: str | None = None,
    chat_template: bool = False,
    strict: bool = True,
) -> list[str]:
    """Applies the templates that the models are trained with.

    Args:
      captions: `B` captions, possibly empty strings.
      fps: frames per second, 0 for an image; one integer, or one for each caption. None omits the template.
      noise_std: standard deviation of the training noise (not negative, data in [-1, 1]); one number, or an
        array-like of shape [B] or [B, 1]. Printed as `int(1000 * noise_std)`. An array-like is rounded to
        float32 first, as it was in training, so 0.7 prints 699 in an array and 700 as a Python float. None omits
        the template.
      aspect_ratio: `"width:height"`, for example `"16:9"`. None omits the template.
      chat_template: request the image in a user turn of a chat, for instruction-tuned encoders. It requests
        "a video" for captions whose `fps` is above 0, otherwise "an image".
      strict: raise an error for `fps` or `noise_std` of another length than `captions`. False truncates to the shortest
        of the three, as the recorded reference does.

    Returns:
      `B` prompts (fewer only with `strict=False`).

    Raises:
      ValueError: an argument is of the wrong kind, range or length.
    """
    if isinstance(captions, str):
        raise ValueError(f"captions must be a sequence of strings, got the single string {captions!r}.")
    for caption in captions:
        if not isinstance(caption, str):
            raise ValueError(f"captions must contain strings only, got {caption!r}.")
    if aspect_ratio is not None and not (isinstance(aspect_ratio, str) and _ASPECT_RATIO.fullmatch(aspect_ratio)):
        raise ValueError(f"aspect_ratio must be 'width:height' with integers above 0, got {aspect_ratio!r}.")

    count = len(captions)
    rates = _frame_rates(fps, count)
    levels = _noise_levels(noise_std, count)
    for name, values in (("fps", rates), ("noise_std", levels)):
        if strict and len(values) != count:
            raise ValueError(f"{name} must be one value or one for each of {count} captions, got {len(values)}.")
    return [
        _prompt(caption, rate, level, aspect_ratio, chat_template)
        for caption, rate, level in zip(captions, rates, levels, strict=False)
    ]


def _prompt(caption: str, rate: int | None, level: int | None, aspect_ratio: str | None, chat_template: bool) -> str:
    prompt = caption
    if rate is not None:
        prompt = f"A video with {rate} fps:\n{prompt}\n" if rate > 0 else f"An image:\n{prompt}\n"
    if level is not None:
        prompt = f"Noise Level {level}:\n{prompt}"
    if aspect_ratio is not None:
        prompt = f"{prompt}\n in a {aspect_ratio} aspect ratio.\n"
    if chat_template:
        medium = "a video" if rate is not None and rate > 0 else "an image"
        request = f"Please generate {medium} about: {prompt}"
        prompt = f"<start_of_turn>user\n{request}<end_of_turn>\n<start_of_turn>model\n"
    return prompt


def _frame_rates(fps: Any, count: int) -> list[int] | list[None]:
    """One frame rate for each caption, or for each entry where `fps` is a sequence."""
    if fps is None:
        return [None] * count
    values = _numbers(fps, "fps")
    for value in values:
        if not (value >= 0 and float(value).is_integer()):
            raise ValueError(f"fps must be an integer, 0 for an image, got {value}.")
    rates = [int(value) for value in values]
    return rates * count if np.ndim(fps) == 0 else rates


def _noise_levels(noise_std: Any, count: int) -> list[int] | list[None]:
    """Noise in thousandths, truncated: one for each caption or for each entry of a sequence."""
    if noise_std is None:
        return [None] * count
    values = _numbers(noise_std, "noise_std")
    for value in values:
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"noise_std must be a finite number >= 0, got {value}.")
    if np.ndim(noise_std) == 0:
        return [int(1000 * float(values[0]))] * count
    return [int(1000 * float(value)) for value in np.asarray(values, np.float32)]


def _numbers(value: Any, name: str) -> list[float]:
    """The real numbers in a scalar or in an array-like of shape [n] or [n, 1]."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return [value.item() if isinstance(value, np.generic) else value]  # type: ignore[list-item]
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" and array.size > 0:
        raise ValueError(f"{name} must be a number or a sequence of numbers, got {value!r}.")
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise ValueError(f"{name} must have shape [B] or [B, 1], got {list(array.shape)}.")
    return array.reshape(-1).tolist()
