"""The page *Draw*: samples from a class or a caption, shown as they are final."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from starflow_jax.studio.background_work import in_turn
from starflow_jax.studio.command_lines import sample_command
from starflow_jax.studio.drawing import CLIPS, PICTURES, draw, frame_choices
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import DEVICE, lets_stop, sentences
from starflow_jax.studio.pages.controls import (
    condition_controls,
    frames_control,
    guidance_control,
    request_of,
    seed_control,
    solver_control,
)
from starflow_jax.studio.shown_results import command, drawing_html, paragraph


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    counts = CLIPS if model.videos else PICTURES
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            [condition] = condition_controls(model)
            num = gr.Radio(list(counts), value=counts[0] if model.videos else counts[2], label="Samples")
            guidance, solver, seed = guidance_control(model), solver_control(model), seed_control()
            frames = frames_control(frame_choices(model), "draw") if model.videos else None
            with gr.Row():
                begin = gr.Button("Draw", variant="primary", elem_id="draw-begin")
                stop = gr.Button("Stop", elem_id="draw-stop")
        with gr.Column(scale=3):
            status = gr.HTML(elem_id="draw-status")
            result = gr.HTML(paragraph("Nothing is drawn yet.", "status"), elem_id="draw-result")
            line = gr.HTML(elem_id="draw-command")

    def answer(*values: Any) -> Iterator[tuple[str, str]]:
        names = ("condition", "num", "guidance", "solver", "seed", "frames")[: len(values)]
        with sentences():
            request = request_of(model, **dict(zip(names, values, strict=True)))
            yield paragraph("drawing", "status"), command(sample_command(model, request))
            for drawing in in_turn(studio.device, draw(model, request)):
                yield drawing_html(drawing), gr.skip()

    inputs = [condition, num, guidance, solver, seed, *([] if frames is None else [frames])]
    event = begin.click(answer, inputs, [result, line], **DEVICE)
    lets_stop(stop, begin, event, status)
