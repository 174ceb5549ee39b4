"""The canvas that visitors paint on, whose paint is received and decoded by the studio in place of Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData

from starflow_jax.studio.pages.answers import sentences
from starflow_jax.studio.received_paint import ReceivedPaint, opacity
from starflow_jax.studio.uploads import check_upload


def painting_canvas(uploads: Path, most_side: int, **options: Any) -> gr.ImageEditor:
    """A canvas whose value is where there is paint, uint8 [h, w], or None for nowhere.

    The component of Gradio opens whatever arrives with every decoder of PIL, and makes as many layers as the visitor
    says. Its two functions are replaced in this one instance, since Gradio writes a file beside the source of each
    subclass of a component.

    Args:
      uploads: the folder of all dropped files, through which a browser sends a painting again.
      most_side: rows or columns of a painting; options: of `gr.ImageEditor`.
    """
    received = ReceivedPaint(most_side)
    canvas = gr.ImageEditor(
        image_mode="RGBA", sources=(), transforms=(), layers=False, buttons=[],
        brush=gr.Brush(default_size=40, colors=["#d6604d"], color_mode="fixed"), **options,
    )  # fmt: skip

    @server
    def accept_blobs(data: AcceptBlobs) -> None:
        """Receives one file; what is behind the paint is dropped."""
        values, files = getattr(data, "data", None), getattr(data, "files", None)
        if isinstance(values, dict) and files and values.get("type") == "layer":
            received.add(values.get("id"), values.get("index"), files[0][1])

    def preprocess(payload: EditorData | None) -> Any:
        """Where there is paint."""
        if payload is None:
            return None
        with sentences():
            if payload.id is not None:
                return received.take(payload.id)
            return opacity([check_upload(layer.path, uploads).path for layer in payload.layers], most_side)

    for name, function in (("accept_blobs", accept_blobs), ("preprocess", preprocess)):
        setattr(canvas, name, function)
    return canvas
