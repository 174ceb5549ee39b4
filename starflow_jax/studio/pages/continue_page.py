"""The page *Continue*: videos that begin with a dropped picture or clip, or that translate it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import gradio as gr

from starflow_jax.studio.background_work import in_turn
from starflow_jax.studio.command_lines import sample_command
from starflow_jax.studio.drawing import draw, frame_choices
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.page_support import no_translation
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
from starflow_jax.studio.uploads import check_upload

_FIRST, _LONGER, _TRANSLATED = "image", "continued", "video"


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    reason = no_translation(model)
    ways = [("begin with this picture", _FIRST), ("continue this clip", _LONGER)]
    if reason is None:
        ways.append(("translate this clip as the caption says", _TRANSLATED))
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            file = gr.File(label="A picture or a clip", type="filepath", elem_id="continue-file")
            way = gr.Radio(ways, value=_FIRST, label="What is done with it")
            if reason is not None:
                gr.HTML(paragraph(reason, "remark"))
            [condition] = condition_controls(model)
            guidance, solver, seed = guidance_control(model), solver_control(model), seed_control()
            frames = frames_control(frame_choices(model), "continue")
            with gr.Row():
                begin = gr.Button("Continue", variant="primary", elem_id="continue-begin")
                stop = gr.Button("Stop", elem_id="continue-stop")
        with gr.Column(scale=3):
            status = gr.HTML(elem_id="continue-status")
            result = gr.HTML(paragraph("Drop a picture or a clip first.", "status"), elem_id="continue-result")
            line = gr.HTML(elem_id="continue-command")

    def answer(
        path: str | None, kind: str, condition: Any, guidance: Any, solver: Any, seed: Any, frames: Any
    ) -> Iterator[tuple[str, str]]:
        with sentences():
            upload = check_upload(path, studio.uploads)
        with sentences(upload):
            request = request_of(
                model,
                condition,
                num=1,
                guidance=guidance,
                solver=solver,
                seed=seed,
                frames=None if kind == _TRANSLATED else frames,  # the source, then as many new frames
                **{kind: upload.path},
            )
            shown = sample_command(model, request, {kind: upload.name})
            yield paragraph("drawing", "status"), command(shown)
            for drawing in in_turn(studio.device, draw(model, request)):
                named = tuple(remark.replace(str(upload.path), upload.shown) for remark in drawing.remarks)
                yield drawing_html(dataclasses.replace(drawing, remarks=named)), gr.skip()

    event = begin.click(answer, [file, way, condition, guidance, solver, seed, frames], [result, line], **DEVICE)
    lets_stop(stop, begin, event, status)
