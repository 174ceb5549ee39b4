"""The page *Training*: curves, samples over time, goodput and checkpoints, while the run trains."""

from __future__ import annotations

from typing import Any

import gradio as gr

from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import UNQUEUED, sentences
from starflow_jax.studio.shown_results import paragraph

_SECONDS = 5.0
# The timer goes on while another page is shown, whose visitor needs no answer.
_HIDDEN = "hidden"
_SEEN = f"""(seen) => [document.querySelector("#training-page")?.offsetParent ? seen : "{_HIDDEN}"]"""


def build(studio: Studio) -> None:
    """Lays the page out."""
    # The first tick fills it in, so that a folder that cannot be read is a message of this page alone.
    page = gr.HTML(paragraph("reading the folder of the run", "status"), elem_id="training-page")
    # The version that the browser shows, which it sends back: pictures are sent again only once something has changed.
    version = gr.Textbox("", visible="hidden", elem_id="training-version")
    timer = gr.Timer(_SECONDS)

    def refresh(seen: str | None) -> tuple[Any, Any]:
        with sentences():
            changed = None if seen == _HIDDEN else studio.progress.changed(seen)
        return (gr.skip(), gr.skip()) if changed is None else changed

    timer.tick(refresh, version, [page, version], js=_SEEN, **UNQUEUED)
