"""The page *Training*: curves, samples over time, goodput and checkpoints, while the run trains."""

from __future__ import annotations

from typing import Any

import gradio as gr

from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import LIGHT, sentences

_SECONDS = 5.0


def build(studio: Studio) -> None:
    """Lays the page out."""
    with sentences():
        page = gr.HTML(studio.progress.html(), elem_id="training-page")
    seen = gr.State(studio.progress.stamp())
    timer = gr.Timer(_SECONDS)

    def refresh(seen: Any) -> tuple[Any, Any]:
        with sentences():
            stamp = studio.progress.stamp()
            if stamp == tuple(map(tuple, seen)):
                return gr.skip(), gr.skip()
            return studio.progress.html(), stamp

    timer.tick(refresh, seen, [page, seen], queue=False, **LIGHT)
