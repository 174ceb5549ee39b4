"""The page *Edit*: paint over a part, and the model fills it in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from starflow_jax.editing.examples import data_size
from starflow_jax.studio.background_work import Outcome
from starflow_jax.studio.command_lines import EXAMPLE_FILE, MASK_FILE, inpaint_command, mask_name
from starflow_jax.studio.drawing import check_caption
from starflow_jax.studio.filling_in import CHOICES, Filled, Filling, fill_in, hidden, moves_of, painted
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import DEVICE, lets_stop, sentences
from starflow_jax.studio.pages.controls import chosen, condition_controls, seed_control, seed_of
from starflow_jax.studio.pages.example_source import example_controls
from starflow_jax.studio.pages.painting_canvas import painting_canvas
from starflow_jax.studio.painted_layers import SIDE, most_side
from starflow_jax.studio.shown_results import command, filled_html, paragraph, waiting_text
from starflow_jax.studio.uploads import pixel_shape


def build(studio: Studio) -> None:
    """Lays the page out."""
    model = studio.model
    size = data_size(model.run)
    frames = size[0] if model.videos else 1
    most = max(frames - 1, 1)  # a slider has two values at least, also one that is not shown
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            source, read = example_controls(studio, "edit")
            show = gr.Button("Show it to paint on", elem_id="edit-show")
            first = gr.Slider(0, most, value=0, step=1, label="Missing from frame", visible=frames > 1)
            last = gr.Slider(0, most, value=frames - 1, step=1, label="to frame", visible=frames > 1)
            [condition] = condition_controls(model, fits=True)
            chains = gr.Radio(list(CHOICES), value="quick", label="Chains")
            seed = seed_control()
            with gr.Row():
                begin = gr.Button("Fill in", variant="primary", elem_id="edit-begin")
                stop = gr.Button("Stop", elem_id="edit-stop")
        with gr.Column(scale=3):
            canvas = painting_canvas(
                studio.uploads, most_side(*pixel_shape(model)[:2]), label="Paint over what is to be filled in",
                height=SIDE + 120, elem_id="edit-canvas",
            )  # fmt: skip
            status = gr.HTML(elem_id="edit-status")
            result = gr.HTML(
                paragraph("Drop an example, show it, and paint over a part.", "status"), elem_id="edit-result"
            )
            line = gr.HTML(elem_id="edit-command")

    def show_it(path: str | None, held: Any) -> tuple[np.ndarray, str]:
        example = read(path, held)
        return enlarged(example.pixels[0]), paragraph(f"{example.name}: paint over a part of it.", "status")

    # The example is read again, since what a server keeps for a visitor others could make it forget.
    def answer(
        path: str | None, held: Any, painting: Any, first: Any, last: Any, condition: Any, chains: Any, seed: Any
    ) -> Iterator[tuple[str, str]]:
        begun = time.monotonic()
        example = read(path, held)
        with sentences():
            pixels = example.pixels
            alpha = np.zeros(pixels.shape[1:3], np.uint8) if painting is None else painting
            span = (int(chosen(one, "the frames that are missing")) for one in (first, last))
            missing = hidden(painted(alpha, *pixels.shape[1:3]), frames, *span)
            by_caption = model.config.reads_captions
            captions = check_caption(condition) if by_caption else None
            filling = Filling(
                label=None if by_caption or not model.classes else str(condition),
                caption=None if captions is None else captions[0],
                chains=str(chosen(chains, "how many chains there are")),
                seed=seed_of(seed),
            )
            shown = inpaint_command(
                model, example.name if example.dropped else EXAMPLE_FILE, mask_name(missing), CHOICES[filling.chains],
                label=filling.label, caption=filling.caption, seed=filling.seed,
            )  # fmt: skip
            for step in fill_in(model, pixels, missing, filling, studio.device):
                if isinstance(step, Outcome):
                    yield filled_html(step.value, files_of(step.value, example.dropped)), command(shown)
                else:
                    text = f"{step.done} of about {moves_of(filling)} moves"
                    yield waiting_text(time.monotonic() - begun, text), command(shown)

    # A canvas that shows progress is uploaded again with each of its changes, also with those of other requests.
    show.click(show_it, source, [canvas, result], show_progress_on=[result], **DEVICE)
    event = begin.click(answer, [*source, canvas, first, last, condition, chains, seed], [result, line], **DEVICE)
    lets_stop(stop, begin, event, status)


def enlarged(frame: np.ndarray) -> np.ndarray:
    """A frame uint8 [H, W, C] by a whole factor, RGBA uint8 [h, w, 4], large enough to paint on."""
    factor = max(1, SIDE // max(frame.shape[:2]))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(large[..., 0] if large.shape[2] == 1 else large).convert("RGBA"))


def files_of(filled: Filled, dropped: bool) -> dict[str, np.ndarray]:
    """The arrays that the command line names: the mask where it is a file, and an example that was not dropped."""
    moving, files = len(filled.missing) > 1, {}
    if mask_name(filled.missing) == MASK_FILE:
        files[MASK_FILE] = (filled.missing if moving else filled.missing[0])[..., None]
    if not dropped:
        files[EXAMPLE_FILE] = filled.original[None] if moving else filled.original
    return files
