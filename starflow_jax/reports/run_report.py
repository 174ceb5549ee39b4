"""The report of a run: one HTML page that contains everything it shows."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax import __version__
from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.html_page import escaped, html_page, html_table
from starflow_jax.core.request_errors import require
from starflow_jax.core.storage.places import shown
from starflow_jax.reports.configuration import MOST_FIELDS, commands, settings
from starflow_jax.reports.likelihood_results import HEADER, read_likelihoods
from starflow_jax.reports.metric_curves import curve_figures
from starflow_jax.reports.pictures import picture_figure, sample_grids, spread
from starflow_jax.reports.run_text import checkpoint_rows, description, state
from starflow_jax.training.checkpoints.workdir import CSV_FILE, read_any_config
from starflow_jax.training.loop.metrics import read_metrics
from starflow_jax.training.run_info import InfoRequest, run_info

REPORT_FILE = "report.html"
_RECONSTRUCTIONS = "reconstructions.png"  # of the training of an autoencoder
_SUFFIXES = (".html", ".htm")


@dataclasses.dataclass(frozen=True)
class ReportRequest:
    """A request for the report of a run.

    Attributes:
      workdir: folder of the run, which may be in progress.
      out: the file to write, which ends with .html; None for report.html in `workdir`.

    Raises:
      RequestError: `out` has another ending, so that it might be another file of the run.
    """

    workdir: Path
    out: Path | None = None

    def __post_init__(self) -> None:
        require(self.path.suffix.lower() in _SUFFIXES, "{out} must end with .html, got {0}", self.path)

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.workdir / REPORT_FILE if self.out is None else self.out


def write_run_report(
    request: ReportRequest, *, results: Mapping[str, Any] | None = None, pictures: Sequence[Path] = ()
) -> Path:
    """Writes the report of a run; missing parts of the run are missing in the report.

    Args:
      results: further results with likelihoods, by the name of their file (`likelihood_results`).
      pictures: further image files to show.

    Returns:
      The file.

    Raises:
      ValueError: the folder holds no run, or one whose configuration is damaged.
      OSError: the file cannot be written.
    """
    workdir = request.workdir
    figures = run_info(InfoRequest(workdir))
    config = read_any_config(workdir)
    assert config is not None  # as `run_info` has checked
    body = [
        *_head(figures),
        *_curves(workdir),
        *_samples(workdir, pictures),
        *_likelihoods(workdir, results),
        *_goodput(figures),
        *_checkpoints(figures),
        *_configuration(config),
        *_reproduction(config, workdir),
    ]
    request.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(request.path, html_page(f"{figures['name']}: report of a run", "\n".join(body)))
    return request.path


def progress_parts(workdir: Path) -> str:
    """How far a run is, as HTML for another page: its state, curves, samples over time, goodput and checkpoints.

    Raises:
      ValueError: see `run_info`.
    """
    figures = run_info(InfoRequest(workdir))
    parts = (_head(figures), _curves(workdir), _samples(workdir, ()), _goodput(figures), _checkpoints(figures))
    return "\n".join(line for part in parts for line in part)


def _paragraph(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def _head(figures: Mapping[str, Any]) -> list[str]:
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"<h1>{escaped(figures['name'])}</h1>",
        _paragraph(description(figures)),
        f"<p><strong>{escaped(state(figures))}</strong></p>",
        _paragraph(f"Folder {shown(figures['workdir'])}; written {written} by starflow {__version__}."),
    ]
    rows = [(name, f"{value:.6g}", "") for name, value in figures["metrics"].items() if name != "step"]
    best = {name: f"{one['value']:.6g} at step {one['step']:.0f}" for name, one in figures["best"].items()}
    if rows:
        rows = [(name, value, best.get(name, "")) for name, value, _ in rows]
        parts.append(html_table([("metric", "last", "lowest"), *rows]))
    return parts


def _curves(workdir: Path) -> list[str]:
    figures = curve_figures(read_metrics(workdir / CSV_FILE))
    shown = (
        f'<div class="panels curves">{"".join(figures)}</div>' if figures else _paragraph("There are no metrics yet.")
    )
    return ["<h2>Curves</h2>", shown]


def _samples(workdir: Path, pictures: Sequence[Path]) -> list[str]:
    grids = sample_grids(workdir)
    shown = [picture_figure(path, f"step {step}") for step, path in spread(grids)]
    if (workdir / _RECONSTRUCTIONS).exists():
        shown.append(picture_figure(workdir / _RECONSTRUCTIONS, "held-out images above their reconstructions"))
    shown += [picture_figure(path, path.name) for path in pictures]
    if not shown:
        return []
    parts = ["<h2>Samples over time</h2>" if grids else "<h2>Pictures</h2>"]
    if len(grids) > 1:
        left_out = len(grids) - len(spread(grids))
        note = f", {left_out} of {len(grids)} steps are left out" if left_out else ""
        parts.append(_paragraph(f"From the same noise at every step{note}."))
    return [*parts, f'<div class="panels pictures">{"".join(shown)}</div>']


def _likelihoods(workdir: Path, results: Mapping[str, Any] | None) -> list[str]:
    found = read_likelihoods(workdir, results)
    if not found.rows and not found.remarks:
        return []
    parts = ["<h2>Likelihoods</h2>"]
    if found.rows:
        parts.append(html_table([HEADER, *found.rows]))
    return [*parts, *map(_paragraph, found.remarks)]


def _goodput(figures: Mapping[str, Any]) -> list[str]:
    if figures["goodput"] is None:
        return []
    rows = [("time of all attempts", ""), *figures["goodput"]["rows"]]
    return ["<h2>Goodput</h2>", html_table(rows)]


def _checkpoints(figures: Mapping[str, Any]) -> list[str]:
    rows = checkpoint_rows(figures)
    return ["<h2>Checkpoints</h2>", html_table(rows, words=True) if rows else _paragraph("There are none.")]


def _configuration(config: AnyExperiment) -> list[str]:
    """The fields that differ from their defaults, and all of them in a part that opens on a click."""
    found = settings(config)
    header = ("field", "value", "default")
    changed = [(one.name, one.value, one.default) for one in found if one.changed]
    everything = [(one.name, one.value, one.default) for one in found]
    marked = {index for index, one in enumerate(found, 1) if one.changed}
    left_out = f" Fields after the first {MOST_FIELDS} are left out." if len(found) == MOST_FIELDS else ""
    return [
        "<h2>Configuration</h2>",
        _paragraph(f"{len(changed)} of {len(found)} fields differ from their defaults.{left_out}"),
        html_table([header, *changed], words=True),
        "<details><summary>All fields, with those that differ highlighted</summary>",
        html_table([header, *everything], words=True, marked=marked),
        "</details>",
    ]


def _reproduction(config: AnyExperiment, workdir: Path) -> list[str]:
    lines = commands(config, workdir)
    if not lines:
        return ["<h2>The same again</h2>", _paragraph("The run of the flow is not where it was.")]
    return [
        "<h2>The same again</h2>",
        _paragraph(f"With starflow {__version__} and the data where the configuration names them:"),
        f"<pre>{escaped(lines)}</pre>",
    ]
