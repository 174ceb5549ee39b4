"""The page *Score*: likelihood, surprise, the Bayes rule, and whether an example is like the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from starflow_jax.core.storage.places import shown
from starflow_jax.studio.background_work import Busy, Outcome, in_background
from starflow_jax.studio.command_lines import score_command
from starflow_jax.studio.familiarity import Verdict
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.page_support import no_classes
from starflow_jax.studio.pages.answers import DEVICE, lets_stop, sentences
from starflow_jax.studio.pages.controls import seed_control, seed_of
from starflow_jax.studio.pages.example_source import example_controls
from starflow_jax.studio.scoring import MOST_SCORED_FRAMES, Score, score
from starflow_jax.studio.shown_results import command, paragraph, score_html, verdict_html, waiting_text


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            source, read = example_controls(studio, "score", MOST_SCORED_FRAMES)
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
            status = gr.HTML(elem_id="score-status")
            result = gr.HTML(paragraph("Drop an example, or take a held-out one.", "status"), elem_id="score-result")
            verdict = gr.HTML(elem_id="score-verdict")

    noise = ""
    if model.config.data.noise == "gaussian":
        std = model.config.data.noise_std
        noise = paragraph(f"Densities with Gaussian noise of {std:g} added, as in training: no code lengths.", "remark")

    def answer(
        path: str | None, held: Any, captions: str | None, seed: Any, compare: bool
    ) -> Iterator[tuple[str, str]]:
        example = read(path, held)
        with sentences():
            lines = (captions or "").splitlines() if model.config.reads_captions else []
            chosen = seed_of(seed)

            def scored(report: Callable[[int], None]) -> Score:
                return score(model, example.pixels, lines, seed=chosen, report=report)

            begun = time.monotonic()
            for step in in_background(scored, studio.device):
                if isinstance(step, Outcome):
                    found = step.value
                else:
                    yield waiting_text(time.monotonic() - begun, "scoring"), ""
            line = None
            if example.dropped:
                line = score_command(model, example.name, found.condition, draws=found.draws, seed=chosen)
            answered = (
                paragraph(example.name) + score_html(found, no_classes(model)) + noise + (command(line) if line else "")
            )
            if not compare:
                yield answered, ""
                return

            def judged(report: Callable[[int], None]) -> Verdict:
                return studio.familiarity.judge(found, report)

            begun = time.monotonic()
            try:
                for progress in in_background(judged, studio.device):
                    if isinstance(progress, Outcome):
                        yield answered, verdict_html(progress.value)
                    else:
                        text = f"comparing with examples of the run, {progress.done} scored"
                        yield answered, waiting_text(time.monotonic() - begun, text)
            except Busy:
                raise
            except (ValueError, OSError) as error:  # the data of the run are not here
                yield answered, paragraph(f"No comparison with held-out examples: {shown(error)}", "remark")

    event = begin.click(answer, [*source, captions, seed, compare], [result, verdict], **DEVICE)
    lets_stop(stop, begin, event, status)
