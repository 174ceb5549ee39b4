"""The controls that several pages share, and the requests that they make."""

from __future__ import annotations

from typing import Any

import gradio as gr

from starflow_jax.core.config.checks import check
from starflow_jax.models.text.templates import EXTEND, TRANSLATE
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.videos.given_frames import known_words
from starflow_jax.studio.drawing import check_caption
from starflow_jax.studio.opened_model import OpenedModel

LARGEST_SEED = 2**32 - 1
_EACH, _NONE, _ANY = "each in turn", "none", "whichever fits"
MOST_GUIDANCE = 10.0
# The words that captions of given clips begin with, in runs that were trained with them.
_WORDS = {"continued": EXTEND, "video": TRANSLATE}


def condition_controls(model: OpenedModel, *, fits: bool = False, own: str = "") -> list[Any]:
    """A class or a caption, as the model reads it: a list of one control, hidden for a model that reads neither.

    Args:
      fits: whether "whichever fits" is a choice, in place of "each in turn"; own: the caption at first.
    """
    if model.config.reads_captions:
        words = () if model.config.text is None else model.config.text.vocabulary
        known = " ".join(word for word in words if not word.startswith("("))
        return [
            gr.Textbox(own, label="Caption", max_length=2000, info=f"of the words: {known}"[:200] if known else None)
        ]
    choices = [(_ANY, "any")] if fits else [(_EACH, "all")]
    choices += [(name, str(index)) for index, name in enumerate(model.classes)]
    choices.append((_NONE, "none"))
    return [gr.Dropdown(choices, value=choices[0][1], label="Class", visible=bool(model.classes))]


def guidance_control(model: OpenedModel, label: str = "Guidance") -> gr.Slider:
    """The weight of guidance; hidden for a model that reads no condition."""
    reads = bool(model.classes) or model.config.reads_captions
    value = min(model.config.sample.guidance, MOST_GUIDANCE) if reads else 0.0
    return gr.Slider(0.0, MOST_GUIDANCE, value=value, step=0.1, label=label, visible=reads)


def solver_control(model: OpenedModel, label: str = "Solver", value: str | None = None) -> gr.Dropdown:
    """The solver that inverts the flow."""
    return gr.Dropdown(list(model.solvers), value=value or model.solvers[0], label=label)


def seed_control() -> gr.Number:
    """The seed of the noise."""
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)


def seed_of(value: Any) -> int:
    """The seed that was entered; raises ValueError for none."""
    check(value is not None, f"enter a seed, a whole number from 0 to {LARGEST_SEED}")
    return int(value)


def chosen(value: Any, what: str) -> Any:
    """The value of a control that has always one on the page; raises ValueError for none."""
    check(value is not None, f"choose {what}")
    return value


def frames_control(choices: tuple[int, ...], page: str) -> gr.Radio:
    """The number of frames, given ones included; each is one compiled program."""
    named = [(str(count), count) for count in choices]
    return gr.Radio(named, value=choices[0], label="Frames in all", elem_id=f"{page}-frames")


def request_of(
    model: OpenedModel,
    condition: Any,
    *,
    num: Any,
    guidance: Any,
    solver: Any,
    seed: Any,
    frames: Any = None,
    **given: Any,
) -> SampleRequest:
    """The request of some controls; `given`: files that videos begin with.

    Raises:
      RequestError, ValueError: a value that is missing or not allowed.
    """
    by_caption = model.config.reads_captions
    reads = by_caption or bool(model.classes)
    label: int | str | None = None
    if model.classes and not model.videos:
        label = int(condition) if str(condition).isdecimal() else str(condition)
    flow, captions = model.config.flow, check_caption(condition) if by_caption else None
    # The word that continues or translates a clip is a condition also without a caption after it.
    word = by_caption and any(_WORDS.get(name) in known_words(model.config) for name in given)
    nothing = label == "none" or (by_caption and captions is None and not word)
    weight = 0.0 if nothing else float(chosen(guidance, "a weight of guidance"))
    return SampleRequest(
        num=int(chosen(num, "a number of samples")),
        captions=captions,
        label=label,
        guidance=weight if reads else None,
        solver=str(chosen(solver, "a solver")),
        seed=seed_of(seed),
        frames=None if frames is None else int(frames),
        stream=model.videos and flow.temporal_causal and flow.shallow_local,
        **given,
    )
