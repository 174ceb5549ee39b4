"""Scores of clips as tables, plain values and files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing_folder
from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.likelihood.video_score_plots import plot_frames, plot_token_maps
from starflow_jax.evaluation.likelihood.video_scores import ClipLikelihood, mean_per_clip, mean_per_frame


def clips_table(scores: Sequence[ClipLikelihood]) -> str:
    """A Markdown table of the bits/dim of every clip."""
    rows = [("clip", "caption", "frames", "bits/dim", "s.e. (draws)")]
    for score in scores:
        clip, frames = score.clip, str(len(score.frames))
        rows.append(
            (clip.name, clip.caption, frames, _format_number(score.bits_per_dim), _format_number(score.draw_error))
        )
    return text_table(rows)


def frames_table(scores: Sequence[ClipLikelihood]) -> str:
    """A Markdown table of the mean bits/dim of every frame over the clips, and of whole clips."""
    rows = [("frame", "bits/dim", "s.e. (clips)", "clips")]
    for frame, (mean, error, count) in enumerate(mean_per_frame(scores)):
        rows.append((str(frame), _format_number(mean), _format_number(error), str(count)))
    mean, error = mean_per_clip(scores)
    rows.append(("clip", _format_number(mean), _format_number(error), str(len(scores))))
    return text_table(rows)


def score_values(scores: Sequence[ClipLikelihood]) -> dict[str, Any]:
    """The scores as plain values, for JSON."""
    mean, error = mean_per_clip(scores)
    return {
        "bits_per_dim": {"mean": mean, "clip_error": error, "clips": len(scores)},
        "frames": [{"mean": m, "clip_error": e, "clips": count} for m, e, count in mean_per_frame(scores)],
        "clips": [
            {
                "name": score.clip.name,
                "caption": score.clip.caption,
                "bits_per_dim": score.bits_per_dim,
                "draw_error": score.draw_error,
                "frames": score.frames.tolist(),
            }
            for score in scores
        ],
    }


def write_scores(out: Path, scores: Sequence[ClipLikelihood]) -> None:
    """Writes frames.csv, tokens.npz, frames.png and surprise.png into a new folder."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["clip", "caption", "frame", "bits_per_dim"])
    for score in scores:
        for frame, bits in enumerate(score.frames):
            table.writerow([score.clip.name, score.clip.caption, frame, f"{bits:.6f}"])
    # One array for each clip, since clips may differ in length.
    maps = {f"clip_{index}": score.tokens.mean(axis=0) for index, score in enumerate(scores)}
    with replacing_folder(out) as folder:
        (folder / "frames.csv").write_text(text.getvalue(), encoding="utf-8")
        np.savez_compressed(folder / "tokens.npz", **maps)
        plot_frames(folder / "frames.png", scores)
        plot_token_maps(folder / "surprise.png", scores)


def _format_number(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"
