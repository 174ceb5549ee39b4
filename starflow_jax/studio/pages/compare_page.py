"""The page *Compare*: two checkpoints, solvers or weights of guidance on the same noise, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from starflow_jax.studio.background_work import in_turn
from starflow_jax.studio.command_lines import sample_command
from starflow_jax.studio.comparing import Side, compare, side_request
from starflow_jax.studio.drawing import PICTURES, frame_choices
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import DEVICE, LIGHT, lets_stop, sentences
from starflow_jax.studio.pages.controls import (
    chosen,
    condition_controls,
    frames_control,
    guidance_control,
    request_of,
    seed_control,
    solver_control,
)
from starflow_jax.studio.shown_results import command, pair_html, paragraph


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    sides: list[list[Any]] = []
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            [condition] = condition_controls(model)
            num = gr.Radio(list(PICTURES[:3]), value=PICTURES[2], label="Samples", visible=not model.videos)
            frames = frames_control(frame_choices(model), "compare") if model.videos else gr.State(None)
            seed = seed_control()
        steps = list(model.steps())
        for index, name in enumerate(("first", "second")):
            with gr.Column(scale=1, min_width=200):
                step = gr.Dropdown(steps, value=model.run.step, label=f"Checkpoint, {name}")
                other = model.solvers[min(index, len(model.solvers) - 1)]
                solver = solver_control(model, f"Solver, {name}", other)
                sides.append([step, solver, guidance_control(model, f"Guidance, {name}")])
    with gr.Row():
        begin = gr.Button("Compare", variant="primary", elem_id="compare-begin")
        stop = gr.Button("Stop", elem_id="compare-stop")
        again = gr.Button("Look for new checkpoints", elem_id="compare-again")
    status = gr.HTML(elem_id="compare-status")
    result = gr.HTML(paragraph("Choose two settings that differ.", "status"), elem_id="compare-result")
    line = gr.HTML(elem_id="compare-command")

    def answer(condition: Any, num: Any, frames: Any, seed: Any, *values: Any) -> Iterator[tuple[str, str]]:
        with sentences():
            first, second = (side_of(*side) for side in (values[:3], values[3:]))
            request = request_of(
                model, condition, num=1 if model.videos else num, guidance=first.guidance, solver=first.solver,
                seed=seed, frames=frames,
            )  # fmt: skip
            titles = (title_of(first), title_of(second))
            for pair in in_turn(studio.device, compare(studio.checkpoints, request, first, second)):
                yield pair_html(pair, titles), gr.skip()
            requests = [(side.step, side_request(request, side)) for side in (first, second)]
            lines = [sample_command(model, its_request, step=step) for step, its_request in requests]
            yield gr.skip(), "".join(map(command, lines))

    def look() -> list[Any]:
        with sentences():
            found = list(model.steps())
        return [gr.Dropdown(choices=found), gr.Dropdown(choices=found)]

    event = begin.click(answer, [condition, num, frames, seed, *sides[0], *sides[1]], [result, line], **DEVICE)
    lets_stop(stop, begin, event, status)
    again.click(look, None, [sides[0][0], sides[1][0]], **LIGHT)


def side_of(step: Any, solver: Any, guidance: Any) -> Side:
    """The settings of one side; raises ValueError for a control without a value."""
    step, solver = chosen(step, "two checkpoints"), chosen(solver, "two solvers")
    return Side(int(step), str(solver), float(chosen(guidance, "two weights of guidance")))


def title_of(side: Side) -> str:
    """The settings of one side in words."""
    return f"step {side.step}, {side.solver}, guidance {side.guidance:g}"
