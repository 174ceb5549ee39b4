"""Which pages a model has; the reason where it has not."""

from __future__ import annotations

from typing import Literal

from starflow_jax.flows.order import is_frame_causal
from starflow_jax.models.text.templates import TRANSLATE
from starflow_jax.sampling.videos.given_frames import known_words
from starflow_jax.studio.opened_model import OpenedModel

Page = Literal["Draw", "Continue", "Score", "Edit", "Training", "Compare"]
PAGES: tuple[Page, ...] = ("Draw", "Continue", "Score", "Edit", "Training", "Compare")


def missing(page: Page, model: OpenedModel) -> str | None:
    """The reason why a model has no such page, one sentence; None where it has."""
    if page == "Training":
        return None
    data = model.config.data
    if data.traits.vectors:
        return "The run is on vectors of numbers, which are no pictures; starflow sample writes them as tables."
    channels = model.config.flow.channels if model.run.autoencoder is None else model.run.autoencoder.pixel_channels
    if channels not in (1, 3):
        return f"Pictures have 1 or 3 channels, and those of this run {channels}."
    if page == "Continue" and not model.videos:
        return "The run is on still images, which have no frames to continue."
    if page == "Score":
        return _no_score(model)
    return None


def _no_score(model: OpenedModel) -> str | None:
    if model.config.data.on_latents:
        return "Scores in bits/dim need a run on pixels, and this one is on latents, which have no integer levels."
    if model.videos and not is_frame_causal(model.config.flow):
        return "Scores of frames need a flow with flow.temporal_causal=True, got False."
    return None


def no_classes(model: OpenedModel) -> str | None:
    """The reason why the Bayes rule has no classes to choose from; None where it has."""
    if model.classes:
        return None
    if model.config.reads_captions:
        return "The run reads captions in place of classes: the Bayes rule compares those that you enter, one a line."
    return "The run was trained without classes, so that there is nothing for the Bayes rule to choose from."


def no_translation(model: OpenedModel) -> str | None:
    """The reason why clips are not translated; None where they are."""
    if TRANSLATE in known_words(model.config):
        return None
    return f"The run was not trained with {TRANSLATE} captions, which translate a clip."
