"""A gallery: one HTML page of samples with captions, exact likelihoods and settings, to share without a server."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax import __version__
from starflow_jax.core.atomic_writing import replacing_folder, write_text
from starflow_jax.core.figures import write_json
from starflow_jax.core.html_page import escaped, html_page, html_picture, html_table, html_video
from starflow_jax.core.request_errors import require
from starflow_jax.data.pipeline.opening_notes import printable_name
from starflow_jax.media import write_png
from starflow_jax.media.video_writing import write_mp4
from starflow_jax.sampling.denoising import denoise_fields, recorded_denoising
from starflow_jax.sampling.image_requests import ImagePlan, SampledImages, draw_images, plan_images
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_likelihoods import sample_log_likelihoods
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.sampling_report import SampleReport
from starflow_jax.sampling.solver_choice import solver_figures
from starflow_jax.sampling.video_requests import SampledVideos, VideoRequestPlan, draw_request, plan_request
from starflow_jax.solvers import AnySolver

PAGE, FIGURES = "index.html", "gallery.json"
MOST_SAMPLES = 500  # that one page shows
_SIDE = 160  # pixels that small samples are enlarged to


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """Samples of a gallery, as `draw_gallery` returns them.

    Attributes:
      name: of the model.
      drawn: the samples.
      titles: of every sample: its caption, or the name of its class.
      log_likelihoods: float32 [m], log p(x | condition) in nats.
      dimensions: D of a sample, without given frames.
      fps: frames per second of videos, None for images.
      settings: names and values: of the model, the solver, guidance, the seed, evaluations and time.
    """

    name: str
    drawn: SampledImages | SampledVideos
    titles: tuple[str, ...]
    log_likelihoods: np.ndarray
    dimensions: int
    fps: float | None
    settings: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """The settings and the likelihood of every sample, for JSON files."""
        scores = [float(score) for score in self.log_likelihoods]
        rows = [{"title": title, "log_likelihood": score} for title, score in zip(self.titles, scores, strict=True)]
        return {"name": self.name, "settings": self.settings, "dimensions": self.dimensions, "samples": rows}


def draw_gallery(run: Run, request: SampleRequest, *, warn: Callable[[str], None] = warnings.warn) -> Gallery:
    """Draws the samples of a gallery and computes their likelihoods.

    Args:
      run: the model, of images or videos.
      request: the samples.
      warn: called with messages about captions that are left out, given frames and an old calibration.

    Raises:
      RequestError, ValueError: the request does not fit the model, or asks for more than `MOST_SAMPLES` samples.
    """
    vectors = run.config.data.traits.vectors
    require(not vectors, "a gallery needs a run on images or videos, got {0}, which is on vectors", run.config.name)
    drawn: SampledImages | SampledVideos
    if run.config.data.frames:
        planned = plan_request(run, request, warn=warn)
        _check_count(request, 0 if planned.plan is None else len(planned.plan.captions) // planned.each * planned.keep)
        drawn = draw_request(run, planned)
        titles = [drawn.plan.captions[index] or "no caption" for index in drawn.kept]
        new = drawn.samples.x.shape[1] - drawn.plan.given_frames
        shape, fps, report = (new, *drawn.samples.x.shape[2:]), planned.fps, drawn.samples.report
        settings = _settings(run, request, planned.solver, float(drawn.plan.scalars["weight"]), report)
        settings |= _video_settings(planned)
    else:
        plan = plan_images(run, request, warn=warn)
        group = request.candidates or 1
        _check_count(request, len(plan.labels) // group * (request.keep or 1))
        drawn = draw_images(run, plan)
        titles, shape, fps = _image_titles(run, plan, drawn), drawn.samples.noisy.shape[1:], None
        settings = _settings(run, request, plan.solver, plan.guidance, drawn.report)
    scores = sample_log_likelihoods(run, drawn)
    return Gallery(run.config.name, drawn, tuple(titles), scores, int(np.prod(shape)), fps, settings)


def write_gallery(gallery: Gallery, out: Path | str) -> Path:
    """Writes a gallery into a new folder: `index.html`, which contains everything it shows, and `gallery.json`.

    Videos are embedded as MP4, images as PNG. Paths of this computer are not written. The folder is absent or empty.

    Returns:
      The page.

    Raises:
      OSError: the folder cannot be written.
    """
    media = _media(gallery)
    sections: dict[str, list[str]] = {}
    for title, score, element in zip(gallery.titles, gallery.log_likelihoods, media, strict=True):
        per_dimension = score / gallery.dimensions
        text = f"{score:,.1f} nats, {per_dimension:.3f} a dimension"
        figure = f"<figure>{element}<figcaption>{escaped(text)}</figcaption></figure>"
        sections.setdefault(title, []).append(figure)
    body = [
        f"<h1>{escaped(gallery.name)}</h1>",
        f"<p>{escaped(_introduction(gallery))}</p>",
        *(
            f'<h2>{escaped(title)}</h2><div class="panels gallery">{"".join(figures)}</div>'
            for title, figures in sections.items()
        ),
        "<h2>Settings</h2>",
        html_table([("setting", "value"), *((name, _text(value)) for name, value in gallery.settings.items())]),
    ]
    with replacing_folder(Path(out)) as folder:
        write_text(folder / PAGE, html_page(f"{gallery.name}: samples", "\n".join(body)))
        write_json(folder / FIGURES, gallery.figures())
    return Path(out) / PAGE


def _introduction(gallery: Gallery) -> str:
    kind = "images" if gallery.fps is None else "videos"
    return (
        f"{len(gallery.titles)} {kind}, drawn by a normalizing flow with starflow {__version__}. Below each stands its "
        f"exact log-likelihood given its condition, over {gallery.dimensions:,} dimensions, before noise is removed"
        + ("." if gallery.fps is None else "; given frames are conditions.")
    )


def _check_count(request: SampleRequest, count: int) -> None:
    name = "num" if request.candidates is None else "keep"
    require(count <= MOST_SAMPLES, f"{{{name}}} must give at most {MOST_SAMPLES} samples on one page, got {{0}}", count)


def _settings(
    run: Run, request: SampleRequest, solver: AnySolver, guidance: float, report: SampleReport
) -> dict[str, Any]:
    temperature = run.config.sample.temperature if request.temperature is None else request.temperature
    return {
        "step of the checkpoint": run.step,
        "weights": run.config.flow.quantise or "float32",
        "solver": solver_figures(solver),
        "guidance": guidance,
        "temperature": temperature,
        **recorded_denoising(run.config, denoise_fields(request)),
        "seed": request.seed,
        "candidates": request.candidates,
        "network evaluations": report.evaluations,
        "batches": report.batches,
        "seconds": round(report.seconds, 3),
        "converged": report.converged,
    }


def _video_settings(planned: VideoRequestPlan) -> dict[str, Any]:
    window = None if planned.plan is None else planned.plan.kind.window
    return {
        "frames": planned.frames,
        "given frames": planned.given_frames,
        "frames per second": planned.fps,
        "window": None if window is None else [window.frames, window.num_context],
    }


def _image_titles(run: Run, plan: ImagePlan, drawn: SampledImages) -> list[str]:
    if plan.captions is not None:
        return [plan.captions.captions[plan.rows[index]] or "no caption" for index in drawn.kept]
    names = run.config.data.class_names or ()
    titles = []
    for label in drawn.labels:
        name = printable_name(names[label]) if 0 <= label < len(names) else f"class {label}"
        titles.append("samples" if label < 0 else name)
    return titles


def _text(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        named = value.get("name", "")
        rest = ", ".join(f"{key} {_text(item)}" for key, item in value.items() if key != "name" and item is not None)
        return f"{named} ({rest})" if named and rest else str(named or rest)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _media(gallery: Gallery) -> list[str]:
    """Every sample as an element of the page."""
    drawn, elements = gallery.drawn, []
    arrays: Sequence[np.ndarray] = list(drawn.images if isinstance(drawn, SampledImages) else drawn.videos)
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        for array, title in zip(arrays, gallery.titles, strict=True):
            scale = max(1, _SIDE // max(array.shape[-3:-1]))
            if gallery.fps is None:
                path = Path(folder) / "sample.png"
                write_png(path, array, scale=scale)
                elements.append(html_picture(path.read_bytes(), title))
            else:
                path = Path(folder) / "sample.mp4"
                write_mp4(path, array, fps=gallery.fps, scale=scale)
                elements.append(html_video(path.read_bytes(), title))
    return elements
