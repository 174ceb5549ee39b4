"""Where the example of a page comes from: a dropped file, or a held-out example of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from starflow_jax.studio.examples import MOST, held_out
from starflow_jax.studio.open_studio import Studio
from starflow_jax.studio.pages.answers import sentences
from starflow_jax.studio.uploads import MOST_FRAMES, check_upload, read_upload


class Example(NamedTuple):
    """An example: its frames uint8 [T, H, W, C], its name, and whether that is the name of a dropped file."""

    pixels: np.ndarray
    name: str
    dropped: bool


def example_controls(
    studio: Studio, page: str, most: int = MOST_FRAMES
) -> tuple[list[Any], Callable[[str | None, Any], Example]]:
    """The controls, and the function that reads the example that they name; `most`: frames of a clip."""
    model = studio.model
    what = "a clip" if model.videos else "a picture"
    file = gr.File(label=what.capitalize(), type="filepath", elem_id=f"{page}-file")
    number = gr.Number(
        0, label="without a file: the held-out example of this number", precision=0, minimum=0, maximum=MOST,
        elem_id=f"{page}-number",
    )  # fmt: skip

    def read(path: str | None, held: Any) -> Example:
        if not path and held is not None:
            with sentences():
                return Example(held_out(model, int(held)), f"held-out example {int(held)}", False)
        with sentences():
            upload = check_upload(path, studio.uploads, f"{what}, or enter the number of a held-out example,")
        with sentences(upload):
            return Example(read_upload(upload, model, most=most), upload.name, True)

    return [file, number], read
