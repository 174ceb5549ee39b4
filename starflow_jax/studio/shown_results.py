"""The results of the pages as HTML: text is escaped, pictures are embedded."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping

import numpy as np

from starflow_jax.core.amounts import time_text
from starflow_jax.core.html_page import escaped, html_table
from starflow_jax.reports.run_text import count_text
from starflow_jax.studio.comparing import Pair
from starflow_jax.studio.drawing import Drawing
from starflow_jax.studio.familiarity import Verdict
from starflow_jax.studio.filling_in import Filled
from starflow_jax.studio.opened_model import OpenedModel, device_text
from starflow_jax.studio.scoring import Score
from starflow_jax.studio.shown_pictures import animation, heat_maps, pictures, strips

_MOST_CHOICES = 10  # rows of the table of classes or captions
_MOST_FRAMES = 48  # of a scored clip that are shown


def paragraph(text: str, kind: str = "") -> str:
    """A text as a paragraph, of the class `kind` of the style sheet."""
    return f'<p class="studio-{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>"


def command(line: str) -> str:
    """A command line that repeats what was done."""
    return f'<div class="studio-command"><p>The same on the command line:</p><pre>{escaped(line)}</pre></div>'


def heading(model: OpenedModel) -> str:
    """What the studio shows: the run, its size and its device."""
    config = model.config
    reads = (
        "captions" if config.reads_captions else f"{len(model.classes)} classes" if model.classes else "no condition"
    )
    rows, columns = config.flow.image_shape
    size = f"{rows} x {columns}" if model.run.autoencoder is None else f"{rows} x {columns} latents"
    what = f"clips of {config.data.frames} frames of {size}" if model.videos else f"pictures of {size}"
    if config.data.traits.vectors:
        what = "vectors of numbers"
    average = "" if model.run.ema else ", without the moving average"
    return f"<h1>{escaped(config.name)}</h1>" + paragraph(
        f"{count_text(model.parameters)} at step {model.run.step}{average}; {what}; reads {reads}; on {device_text()}."
    )


def drawing_html(drawing: Drawing) -> str:
    """Samples as far as they are final, with the class below each picture."""
    parts = [_progress(drawing)]
    if drawing.frames == 1:
        parts.append(pictures(drawing.pixels[:, 0], drawing.labels if any(drawing.labels) else (), side=96))
    else:
        if drawing.finished:
            parts.append(animation(drawing.pixels, drawing.fps))
        parts.append(strips(drawing.pixels, given=drawing.given, frames=drawing.frames))
    parts += [paragraph(remark, "remark") for remark in drawing.remarks]
    return "".join(parts)


def _progress(drawing: Drawing) -> str:
    done, total = drawing.pixels.shape[1], drawing.frames
    if drawing.frames > 1 and not drawing.finished:
        first = "" if drawing.first_frame is None else f"; the first was final after {drawing.first_frame:.2f} s"
        return paragraph(f"frame {done} of {total} final{first}", "status")
    cells = [
        ("time to the first frame" if drawing.frames > 1 else "time", f"{drawing.first_frame or 0.0:.2f} s"),
        ("time in all", f"{drawing.seconds:.2f} s"),
        ("compiling before", f"{drawing.compile_seconds:.1f} s"),
        ("depth", f"{drawing.depth} evaluations in sequence"),
        ("tokens/s", f"{drawing.tokens_per_second or 0.0:,.0f}"),
    ]
    cells = cells if drawing.frames > 1 else [cells[0], *cells[2:]]
    table = html_table([tuple(name for name, _ in cells), tuple(value for _, value in cells)], words=True)
    if drawing.unconverged:
        table += paragraph(f"{drawing.unconverged} chunks of tokens did not converge; sequential is exact.", "remark")
    return table


def score_html(score: Score, no_choice: str | None) -> str:
    """A score; `no_choice`: why there are no classes to choose from, None where there are."""
    error = "" if math.isnan(score.error) else f" ± {score.error:.3f}"
    under = f" under {score.condition!r}" if score.condition else ""
    moving = len(score.pixels) > 1
    values = "pixels" if score.pixels.shape[-1] == 1 else "values of pixels"
    parts = [
        f"<h3>{escaped(f'{score.bits_per_dim:.3f}{error} bits/dim{under}')}</h3>",
        paragraph(f"{score.bits:,.0f} bits for {score.pixels.size:,} {values}, {score.draws} draws of the noise."),
        "<h4>As the model sees it, and the surprise of every token</h4>",
        pictures(score.pixels[:_MOST_FRAMES], [str(t) for t in range(len(score.pixels))] if moving else ()),
        heat_maps(score.surprise[:_MOST_FRAMES]),
    ]
    if len(score.pixels) > _MOST_FRAMES:
        parts.append(paragraph(f"Frames after the first {_MOST_FRAMES} are not shown.", "remark"))
    if moving:
        rows = [("frame", *map(str, range(len(score.frames))))]
        rows.append(("bits/dim", *(f"{value:.3f}" for value in score.frames)))
        parts.append(html_table(rows))
    if score.choices:
        most = score.choices[:_MOST_CHOICES]
        parts.append("<h4>By the Bayes rule</h4>")
        parts.append(html_table([("condition", "probability"), *((name, f"{100 * p:.2f} %") for name, p in most)]))
    elif no_choice:
        parts.append(paragraph(no_choice, "remark"))
    return "".join(parts)


def verdict_html(verdict: Verdict) -> str:
    """Whether an example is like the data of the run."""
    typical = next(one for one in verdict.comparisons if one.name == "typicality")
    title = "Too few held-out examples to tell"
    if verdict.like is not None:
        title = "Like the data of the run" if verdict.like else "Unlike the data of the run"
    reason = (
        f"{100 * typical.share:.1f} % of {verdict.held_out} held-out examples are at least as far from the mean "
        "likelihood of training examples (the test of typicality; below 5 % counts as unlike)."
    )
    rows = [("score", "value", "held-out examples at or beyond it")]
    rows += [(one.name, f"{one.value:.4g}", f"{100 * one.share:.1f} %") for one in verdict.comparisons]
    caution = "Likelihood alone is no proof: simple pictures can be likelier than all of the data."
    kind = {True: "like", False: "unlike", None: "status"}[verdict.like]
    return f'<h4 class="studio-{kind}">{title}</h4>{paragraph(reason)}{html_table(rows)}{paragraph(caution, "remark")}'


def filled_html(filled: Filled, files: Mapping[str, np.ndarray] | None = None) -> str:
    """What was filled in, beside the original; `files`: arrays that the command line reads, to be saved, by name."""
    parts = ["<h4>What was given</h4>"]
    moving = len(filled.shown) > 1
    parts.append(strips(filled.shown[None]) if moving else pictures(filled.shown, ["hidden in grey"]))
    links = [saved_array(name, array) for name, array in (files or {}).items()]
    if links:
        parts.append(f"<p>For the command line: save {' and '.join(links)}.</p>")
    parts.append(f"<h4>{len(filled.pixels)} draws of the rest</h4>")
    parts.append(strips(filled.pixels) if moving else pictures(filled.pixels[:, 0]))
    if filled.classes:
        shares = ", ".join(f"{name}: {100 * share:.0f} %" for name, share in filled.classes)
        parts.append(paragraph(f"Classes of the chains: {shares}."))
    parts.append(
        paragraph(
            f"Acceptance {filled.acceptance:.2f}, largest R-hat {filled.r_hat:.2f} (1 where chains agree), smallest "
            f"effective sample size {filled.ess:.0f}."
        )
    )
    return "".join(parts)


def pair_html(pair: Pair, titles: tuple[str, str]) -> str:
    """Two settings side by side."""
    columns = []
    for title, drawing in zip(titles, (pair.first, pair.second), strict=True):
        shown = paragraph("waiting", "status") if drawing is None else drawing_html(drawing)
        columns.append(f"<section><h4>{escaped(title)}</h4>{shown}</section>")
    below = ""
    if pair.difference is not None:
        found = pair.difference
        below = paragraph(
            f"Relative difference {found.relative:.2g}, {100 * found.same_pixels:.1f} % of the pixels equal; the first "
            f"took {found.evaluations:,.2f} times the evaluations and {found.seconds:,.2f} times the time of the "
            "second."
        )
    return f'<div class="studio-pair">{"".join(columns)}</div>{below}'


def saved_array(name: str, array: np.ndarray) -> str:
    """A link that saves an array as a .npy file, which is embedded."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<a download="{escaped(name)}" href="data:application/octet-stream;base64,{encoded}">{escaped(name)}</a>'


def waiting_text(seconds: float, what: str) -> str:
    """A line of progress for work of unknown length."""
    return paragraph(f"{what}, {time_text(seconds)}", "status")
