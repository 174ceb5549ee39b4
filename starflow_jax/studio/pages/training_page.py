"""The page *Training*: curves, samples over time, goodput and checkpoints, while the run trains."""

from __future__ import annotations

import gradio as gr

from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import UNQUEUED, sentences
from starflow_jax.studio.shown_results import paragraph

_SECONDS = 5.0


def build(studio: Studio) -> None:
    """Lays the page out."""
    # The first tick fills it in, so that a folder that cannot be read is a message of this page alone.
    page = gr.HTML(paragraph("reading the folder of the run", "status"), elem_id="training-page")
    timer = gr.Timer(_SECONDS)

    def refresh() -> str:
        with sentences():
            return studio.progress.html()  # which is made anew only when something has changed

    timer.tick(refresh, None, page, **UNQUEUED)
