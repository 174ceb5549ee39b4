"""The page *Score*: likelihood, surprise, the Bayes rule, and whether an example is like the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.page_support import no_classes
from starflow_jax.studio.pages.answers import DEVICE, sentences
from starflow_jax.studio.pages.controls import seed_control
from starflow_jax.studio.pages.example_source import example_controls
from starflow_jax.studio.scoring import score
from starflow_jax.studio.shown_results import paragraph, score_html, verdict_html


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            source, read = example_controls(studio, "score")
            captions = gr.Textbox(
                "", lines=4, max_length=8000, label="Captions to compare, one a line",
                visible=model.config.reads_captions,
            )  # fmt: skip
            seed = seed_control()
            compare = gr.Checkbox(True, label="Compare with held-out examples of the run")
            with gr.Row():
                begin = gr.Button("Score", variant="primary", elem_id="score-begin")
                stop = gr.Button("Stop", elem_id="score-stop")
        with gr.Column(scale=3):
            result = gr.HTML(paragraph("Drop an example, or take a held-out one.", "status"), elem_id="score-result")
            verdict = gr.HTML(elem_id="score-verdict")

    noise = ""
    if model.config.data.noise == "gaussian":
        std = model.config.data.noise_std
        noise = paragraph(f"Densities with Gaussian noise of {std:g} added, as in training: no code lengths.", "remark")

    def answer(path: str | None, held: Any, captions: str, seed: Any, compare: bool) -> Iterator[tuple[str, str]]:
        example = read(path, held)
        with sentences():
            lines = captions.splitlines() if model.config.reads_captions else []
            with studio.device:
                found = score(model, example.pixels, lines, seed=0 if seed is None else int(seed))
            shown = paragraph(example.name) + score_html(found, no_classes(model)) + noise
            yield shown, paragraph("comparing with held-out examples", "status") if compare else ""
            if compare:
                try:
                    with studio.device:
                        verdict_of = studio.familiarity.judge(found)
                    yield shown, verdict_html(verdict_of)
                except (ValueError, OSError) as error:  # the data of the run are not here
                    yield shown, paragraph(f"No comparison with held-out examples: {error}", "remark")

    event = begin.click(answer, [*source, captions, seed, compare], [result, verdict], **DEVICE)
    stop.click(lambda: paragraph("stopped", "status"), None, result, cancels=[event], queue=False)
