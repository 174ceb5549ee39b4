"""The video demo: train on clips of moving digits, score, denoise, sample in four ways, write a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config import ExperimentConfig
from starflow_jax.core.figures import finite, text_table
from starflow_jax.data import MovingDigits
from starflow_jax.demos.digits_demo import (
    CURVES,
    FIGURES,
    PAGE,
    REPORT,
    RUN_FOLDER,
    Clock,
    claim,
    common_figures,
    finished_report,
    latest_step,
    seconds_table,
    studio_line,
    write_report,
)
from starflow_jax.demos.drawings import Drawing, draw_all, write_drawing
from starflow_jax.evaluation.likelihood.video_score_plots import plot_frames, plot_token_maps
from starflow_jax.evaluation.likelihood.video_scores import (
    Clip,
    ClipLikelihood,
    mean_per_clip,
    mean_per_frame,
    score_clips,
    source_clips,
)
from starflow_jax.evaluation.video.denoiser_ablation import denoiser_ablation, denoisers_table
from starflow_jax.flows.parameters import Params, count
from starflow_jax.training import load_run, open_source, plot_curves, train

FRAMES_PLOT, SURPRISE = "frames.png", "surprise.png"
KINDS = ("captions", "first_frame", "video_to_video", "longer")
VIDEO_FILES = (
    *(f"{kind}{suffix}" for kind in KINDS for suffix in (".mp4", ".gif")),
    FRAMES_PLOT,
    SURPRISE,
    CURVES,
    REPORT,
    PAGE,
    FIGURES,
)
MIN_RECOGNISED, MIN_DIRECTION = 0.8, 0.8

Say = Callable[[str], None]


def run_video_demo(
    config: ExperimentConfig, out: Path, *, progress: bool = True, say: Say = print, repeats: int = 2
) -> dict[str, Any] | None:
    """Runs the demo, or the part of it that an earlier call did not finish.

    Args:
      config: an experiment on moving digits with a learned denoiser.
      out: receives `run/` (the training run) and `VIDEO_FILES`, report.json last.
      progress: shows a progress bar while training.
      say: prints a line.
      repeats: number of samples of each of the 40 captions for the measurement.

    Returns:
      The content of report.json; None if training was interrupted, which the same call resumes.

    Raises:
      ValueError: see `digits_demo.claim`; or a damaged checkpoint.
    """
    claim(out, config)
    report = finished_report(out, config, VIDEO_FILES)
    if report is not None:
        say(f"{out} contains this demo, finished; delete it to start again.\n")
        say(closing(report, out))
        return report
    clock = Clock()
    run = out / RUN_FOLDER
    source, held_out = (open_source(config.data, split, flow=config.flow) for split in ("train", "test"))
    assert isinstance(source, MovingDigits) and isinstance(held_out, MovingDigits)
    begun_at = latest_step(run)
    say(f"training {config.name}: {config.train.steps} steps on clips of {config.data.frames} frames")
    with clock.phase("training"):
        result = train(config, run, progress=progress, source=source)
    if result.interrupted:
        return None
    _, _, params, _ = load_run(run)

    score_key, noise_key, draw_key = jax.random.split(jax.random.key(config.seed), 3)
    say(f"scoring {len(held_out)} held-out clips")
    with clock.phase("scoring"):
        clips = source_clips(held_out, config, len(held_out))
        scores = score_clips(params, config, clips, score_key, draws=config.evaluate.draws)
    plot_frames(out / FRAMES_PLOT, scores)
    plot_token_maps(out / SURPRISE, scores)
    with clock.phase("denoising"):
        ablation = _ablation(params, config, clips, noise_key)
    say("sampling")
    with clock.phase("sampling"):
        drawings = draw_all(params, config, held_out, draw_key, repeats=repeats)
    for drawing in drawings:
        write_drawing(drawing, out)
    plot_curves(run, out / CURVES)

    report = common_figures(config, result.step, begun_at, count(params)) | {
        "scores": _scores(scores),
        "denoisers": ablation,
        "drawings": {drawing.name: drawing.figures for drawing in drawings},
        "bars": bars(drawings),
        "seconds": clock.seconds,
    }
    pictures = [out / f"{kind}.gif" for kind in KINDS] + [out / FRAMES_PLOT, out / SURPRISE]
    return write_report(out, finite(report), markdown, closing, say, pictures=pictures)


def _ablation(params: Params, config: ExperimentConfig, clips: Sequence[Clip], key: jax.Array) -> list[dict[str, Any]]:
    clean = np.stack([clip.pixels for clip in clips]) * (2.0 / (clips[0].levels - 1)) - 1.0
    cond = np.stack([np.asarray(clip.cond) for clip in clips])
    rows = denoiser_ablation(params, config.flow, clean, cond, key, noise_std=config.data.noise_std)
    return [row.to_dict() for row in rows]


def _scores(clips: Sequence[ClipLikelihood]) -> dict[str, Any]:
    mean, error = mean_per_clip(clips)
    rows = mean_per_frame(clips)
    frames = [{"bits_per_dim": value, "error": frame_error, "clips": num} for value, frame_error, num in rows]
    return {"clips": len(clips), "bits_per_dim": mean, "error": error, "frames": frames}


def bars(drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """The quality bars for clips sampled from captions, and whether they are reached."""
    agreement = next(drawing.figures["agreement"] for drawing in drawings if drawing.name == "captions")
    limits = {
        "frame_share": (f"the caption's digit in at least {100 * MIN_RECOGNISED:.0f} % of frames", MIN_RECOGNISED),
        "direction_share": (f"the caption's direction in at least {100 * MIN_DIRECTION:.0f} % of clips", MIN_DIRECTION),
    }
    return [
        {"what": what, "value": agreement[name], "passed": agreement[name] >= limit}
        for name, (what, limit) in limits.items()
    ]


def closing(report: Mapping[str, Any], out: Path) -> str:
    """The text that the demo prints at its end."""
    paths = "\n".join(f"  {out / name}" for name in VIDEO_FILES)
    return (
        f"{_frames_table(report)}\n\n{denoisers_table(report['denoisers'])}\n\n{_agreement(report)}\n\n{_bars(report)}\n\n"
        f"{seconds_table(report)}\n\nwritten:\n{paths}\nsample more:\n"
        f'  starflow sample --workdir {out / RUN_FOLDER} --caption "a seven moving left" --frames 24 --out seven.mp4\n'
        f"{studio_line(out / RUN_FOLDER)}"
    )


def _frames_table(report: Mapping[str, Any]) -> str:
    scores = report["scores"]
    rows = [("frame", "bits/dim", "s.e."), ("all", f"{scores['bits_per_dim']:.4f}", _format_number(scores["error"]))]
    for frame, row in enumerate(scores["frames"]):
        rows.append((str(frame), f"{row['bits_per_dim']:.4f}", _format_number(row["error"])))
    return text_table(rows)


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bars(report: Mapping[str, Any]) -> str:
    verdicts = {True: "passed", False: "MISSED"}
    return "\n".join(
        f"- {verdicts[bar['passed']]}: {bar['what']} ({100 * bar['value']:.1f} %)" for bar in report["bars"]
    )


def _agreement(report: Mapping[str, Any]) -> str:
    """Agreement of the samples of every kind with their captions and given frames."""
    drawings = report["drawings"]
    captions = drawings["captions"]
    rows = [("clips", "digit as captioned, frames", "direction as captioned, clips")]
    agreements = (
        ("real, held out", captions["agreement_real"]),
        ("sampled from captions, denoised", captions["agreement"]),
        ("the same before denoising", captions["agreement_noisy"]),
        ("continued from a first frame", drawings["first_frame"]["agreement"]),
    )
    for name, shares in agreements:
        rows.append((name, f"{100 * shares['frame_share']:.1f} %", f"{100 * shares['direction_share']:.1f} %"))
    longer = drawings["longer"]
    distance = np.array(longer["distance"][longer["given_frames"] :], float)  # None, where no ink is left, is NaN
    first_kept = 100 * drawings["first_frame"]["digit_kept"]
    return (
        f"{text_table(rows)}\n\n"
        f"- first frame to video: the given digit is recognised in {first_kept:.1f} % of new frames\n"
        f"- video to video: {drawings['video_to_video']['psnr']:.1f} dB against the true inverted clip\n"
        f"- continued to {len(longer['distance'])} frames: the digit is recognised in "
        f"{100 * longer['digit_kept']:.1f} % of the new ones; its centre is "
        f"{np.nanmean(distance[:6]):.1f} pixels from the true one in the first 6 frames, "
        f"{np.nanmean(distance[-6:]):.1f} in the last 6"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """The content of report.md."""
    machine, config = report["hardware"], report["config"]
    pictures = "\n\n".join(f"### {kind.replace('_', ' ')}\n\n![real, noisy, denoised]({kind}.gif)" for kind in KINDS)
    return f"""# Moving handwritten digits, learned by a video flow

A flow of {report["parameters"]:,} parameters, its denoiser included, was trained for {report["steps"]:,} updates on
clips of {config["data"]["frames"]} frames with noise of standard deviation {config["data"]["noise_std"]:g}, and
scored on {report["scores"]["clips"]} clips of held-out digits.

## Likelihood

{_frames_table(report)}

bits/dim of the noisy clips given their captions, each frame given those before it, at the resolution of a pixel level.

![bits/dim against the frame]({FRAMES_PLOT})

![bits/dim of every token]({SURPRISE})

## Removing the training noise

{denoisers_table(report["denoisers"])}

PSNR and SSIM of held-out clips with the training noise added, against the clean clips, with all values clipped as
for display (STARFlow-V, arXiv 2511.20462, has such a table: 26.7 dB for flow-score matching, 22.1 dB for the score).

## Samples

{_agreement(report)}

{_bars(report)}

Each animation: real clips, samples with the training noise, the same samples denoised.

{pictures}

## Training

![curves of the training]({CURVES})

## Time

{seconds_table(report)}

{machine["cpu"]}, {machine["cores"]} cores, {machine["device"]}, {machine["system"]},
Python {machine["python"]}, JAX {machine["jax"]}, starflow {report["version"]}, seed {config["seed"]}.
"""
