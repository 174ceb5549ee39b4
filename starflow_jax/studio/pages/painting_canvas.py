"""The canvas that visitors paint on, whose paint is decoded by the studio in place of Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.image_editor import EditorData

from starflow_jax.studio.pages.answers import sentences
from starflow_jax.studio.painted_layers import opacity
from starflow_jax.studio.uploads import check_upload


def painting_canvas(uploads: Path, most_side: int, **options: Any) -> gr.ImageEditor:
    """A canvas whose value is where there is paint, uint8 [h, w], or None for nowhere.

    The component of Gradio opens every picture that arrives with every decoder of PIL, also those behind the paint, and
    has another way to send them, which makes as many layers as the visitor says. The first is replaced and the second
    taken away in this one instance, since Gradio writes a file beside the source of each subclass of a component.

    Args:
      uploads: the folder of all dropped files, where a browser puts what is painted.
      most_side: rows or columns of a painting; options: of `gr.ImageEditor`.
    """
    canvas = gr.ImageEditor(
        image_mode="RGBA", sources=(), transforms=(), layers=False, buttons=[],
        brush=gr.Brush(default_size=40, colors=["#d6604d"], color_mode="fixed"), **options,
    )  # fmt: skip

    def preprocess(payload: EditorData | None) -> Any:
        """Where there is paint."""
        if payload is None:
            return None
        with sentences():
            return opacity([check_upload(layer.path, uploads).path for layer in payload.layers], most_side)

    for name, replacement in (("preprocess", preprocess), ("accept_blobs", None)):
        setattr(canvas, name, replacement)
    return canvas
