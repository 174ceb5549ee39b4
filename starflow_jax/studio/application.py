"""The pages of a studio as one application of Gradio."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.page_support import PAGES, Page, missing
from starflow_jax.studio.pages import (
    compare_page,
    continue_page,
    draw_page,
    edit_page,
    score_page,
    training_page,
)
from starflow_jax.studio.shown_results import heading, paragraph

_BUILD: dict[Page, Callable[[Studio], None]] = {
    "Draw": draw_page.build,
    "Continue": continue_page.build,
    "Score": score_page.build,
    "Edit": edit_page.build,
    "Training": training_page.build,
    "Compare": compare_page.build,
}
# Dropped files are removed when they are an hour old.
_CLEANING = (600, 3600)
FONTS = ("system-ui", "sans-serif")
STYLE = """
.studio-row { display: flex; flex-wrap: wrap; gap: 6px; margin: 6px 0; }
.studio-row figure { margin: 0; text-align: center; font-size: 12px; }
.studio-row img { image-rendering: pixelated; display: block; }
.studio-given img { outline: 2px solid #d6604d; }
.studio-waiting { border: 1px dashed #bbb; box-sizing: border-box; }
.studio-remark { color: #8a5a00; }
.studio-status { color: #555; }
.studio-like { color: #2e7d32; } .studio-unlike { color: #b3261e; }
.studio-scale { display: flex; gap: 8px; align-items: center; }
.studio-command pre { background: #f5f5f5; color: #222; padding: 0.6em; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.studio-pair { display: flex; flex-wrap: wrap; gap: 24px; } .studio-pair section { flex: 1; min-width: 300px; }
div.wide { overflow-x: auto; margin: 6px 0; }
div.wide :is(table, thead, tbody, tr) { border: 0 !important; }
div.wide table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
div.wide th, div.wide td { border: 0 !important; border-bottom: 1px solid #ddd !important; padding: 2px 8px;
  text-align: left; white-space: nowrap; }
div.panels { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start; } div.panels figure { margin: 0; }
div.curves figure { width: 350px; } div.pictures figure { max-width: 46%; }
div.panels svg text { font-size: 11px; fill: #444; } figcaption { font-size: 12px; }
"""


def application(studio: Studio, *, queue: int) -> gr.Blocks:
    """The application.

    Args:
      studio: the model and where files are; queue: requests that may wait at once.
    """
    with gr.Blocks(
        title=f"starflow studio: {studio.model.config.name}", analytics_enabled=False, delete_cache=_CLEANING
    ) as app:
        gr.HTML(heading(studio.model), elem_id="studio-heading")
        with gr.Tabs():
            for page in PAGES:
                with gr.Tab(page, id=page):
                    reason = missing(page, studio.model)
                    if reason is None:
                        _BUILD[page](studio)
                    else:
                        gr.HTML(paragraph(reason, "remark"), elem_id=f"{page.lower()}-missing")
    app.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    return app


def theme() -> gr.themes.Base:
    """A theme of the fonts that the browser has: none is fetched."""
    return gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
