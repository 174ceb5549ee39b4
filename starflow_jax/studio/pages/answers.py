"""How a page answers: bad input in one escaped sentence, bugs without their details."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import gradio as gr

from starflow_jax.core.html_page import escaped
from starflow_jax.core.request_errors import RequestError
from starflow_jax.core.storage.places import shown
from starflow_jax.studio.background_work import Ended
from starflow_jax.studio.shown_results import paragraph
from starflow_jax.studio.uploads import Upload

# All work on the device is one queue, of which one request is in progress.
DEVICE: dict[str, Any] = {
    "concurrency_id": "device",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "minimal",
}
# What needs neither the device nor the queue.
UNQUEUED: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
# What needs no device.
LIGHT: dict[str, Any] = {"concurrency_limit": 4, "api_visibility": "private", "show_progress": "hidden"}
# The names of fields of requests on the pages.
_LABELS = {
    "num": "The number of samples",
    "captions": "The caption",
    "label": "The class",
    "image": "The picture",
    "continued": "The clip",
    "video": "The clip",
    "frames": "The number of frames",
    "guidance": "The guidance",
    "solver": "The solver",
    "seed": "The seed",
}


def lets_stop(stop: gr.Button, begin: gr.Button, event: Any, status: gr.HTML) -> None:
    """Lets a button end the work of another one, and says so in an element that no late answer overwrites.

    Args:
      stop, begin: the buttons; event: the work of `begin`; status: says "stopped" until `begin` is clicked again.
    """
    begin.click(lambda: "", None, status, **UNQUEUED)
    stop.click(lambda: paragraph("stopped", "status"), None, status, cancels=[event], **UNQUEUED)


@contextlib.contextmanager
def sentences(upload: Upload | None = None) -> Iterator[None]:
    """Turns errors into messages of the page; the path of an upload is shown as the name of the file."""
    try:
        yield
    except gr.Error:
        raise
    except RequestError as error:
        raise _refused(error.text(lambda field: _LABELS.get(field, field)), upload) from error
    except (ValueError, OSError) as error:
        raise _refused(str(error), upload) from error
    except Ended as error:
        raise _refused("the studio is ending", upload) from error
    except Exception as error:
        traceback.print_exc()
        sentence = "The program failed; the terminal in which the studio runs has the details."
        raise gr.Error(sentence, title="Failed", print_exception=False) from error


def _refused(text: str, upload: Upload | None) -> gr.Error:
    text = " ".join(shown(text).split()).removesuffix(".")
    if upload is not None:
        text = text.replace(str(upload.path), upload.shown)
    return gr.Error(f"{escaped(text[:1].upper() + text[1:])}.", title="Not possible", print_exception=False)
