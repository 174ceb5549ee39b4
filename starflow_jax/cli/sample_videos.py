"""`starflow sample` of a run on clips."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

from starflow_jax.cli.errors import REFUSED, CommandError, sentences
from starflow_jax.cli.options.captions import read_captions, readable_captions
from starflow_jax.cli.options.given_frames import read_given
from starflow_jax.cli.options.solver import chosen_solver, solver_figures
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.sample_warnings import warn_of
from starflow_jax.cli.video_files import choose_scale, write_videos
from starflow_jax.core.config.experiment import ExperimentConfig

DEFAULT_FPS, MAX_FPS = 8.0, 240.0


def draw_videos(arguments: argparse.Namespace, config: ExperimentConfig, params: dict[str, Any], step: int) -> int:
    """Draws, writes and reports what the options ask of a run's flow.

    Returns:
      An exit code: 0, or 2 where no caption could be read.
    """
    import jax
    from tqdm import tqdm

    from starflow_jax.core.figures import write_json
    from starflow_jax.models.text.templates import prefixed
    from starflow_jax.sampling.latent_shapes import autoencoder_of
    from starflow_jax.sampling.ranking import likeliest, log_likelihoods
    from starflow_jax.sampling.streaming.stream import stream_plan
    from starflow_jax.sampling.videos.draw import draw_plan
    from starflow_jax.sampling.videos.video_plan import caption_reader, plan_videos
    from starflow_jax.solvers.streaming.pipeline import check_streaming

    size = size_of(arguments, config)
    window = _window(arguments, config)
    with sentences(autoencoder_of):
        autoencoder = autoencoder_of(config.data)
    given = read_given(arguments, config, size, window, autoencoder)
    shown_frames, shown_size = given.frames, size
    if autoencoder is not None:
        shown_frames = autoencoder.pixel_frames(given.frames)
        shown_size = (size[0] * autoencoder.stride, size[1] * autoencoder.stride)
    captions = [prefixed(caption, given.word) for caption in read_captions(arguments.caption or [""])]
    with sentences(caption_reader):
        reader = caption_reader(config)
    good, bad = readable_captions(captions, reader)
    if not good:
        return REFUSED
    each = arguments.candidates or arguments.num or config.sample.num
    keep = arguments.keep or 1 if arguments.candidates is not None else each
    solver = chosen_solver(arguments, config, step=step, batch=min(arguments.batch or 8, len(good) * each))
    scale = choose_scale(arguments.out, len(good) * keep, shown_frames, shown_size, arguments.scale)
    guidance = arguments.guidance
    if guidance is None and not any(captions[place].strip() for place in good):
        guidance = 0.0  # what the configuration says is meant for videos of a caption
    with sentences(plan_videos):
        plan = plan_videos(
            config,
            [captions[place] for place in good for _ in range(each)],
            frames=given.frames,
            size=size,
            prefix=given.prefix,
            prefix_pixels=given.pixels,
            solver=solver,
            guidance=guidance,
            temperature=arguments.temperature,
            attention_temperature=arguments.attention_temperature,
            denoise=arguments.denoise,
            window=window,
            batch_size=arguments.batch or 8,
            # A caption keeps its noise when another one is left out.
            places=[place * each + number for place in good for number in range(each)],
            reader=reader,
            aspect=arguments.aspect,
            fps=arguments.fps,
        )
    given_shown = plan.given_frames if given.pixels is None else len(given.pixels)
    new_frames = len(plan.captions) * (given.frames - plan.given_frames)
    with tqdm(total=new_frames, unit="frame", disable=None, dynamic_ncols=True) as bar:
        key = jax.random.key(arguments.seed)
        streams: tuple[Any, ...] = ()
        if arguments.stream:
            with sentences(check_streaming):
                # The deep block on one device, what follows it on another, where there are two.
                devices = jax.devices()[:2] if len(jax.devices()) > 1 else None
                drawn, streams = stream_plan(params, key, plan, progress=bar.update, devices=devices)
        else:
            drawn = draw_plan(params, key, plan, progress=bar.update)
    kept, scores = np.arange(len(plan.captions)), None
    if arguments.candidates is not None:
        found = log_likelihoods(
            params,
            config.flow,
            drawn.x,
            drawn.text,
            given=plan.given_frames,
            window=plan.kind.window,
            later_cond=plan.later_text,
            batch_size=plan.batch_size,
        )
        kept = likeliest(found, each, keep)
        scores = found[kept]
    if not is_first():
        return 0
    rates = [part.fps for part in (config.data, *config.data.mixture) if part.fps]
    fps = arguments.fps or min(given.fps or (rates[0] if rates else DEFAULT_FPS), MAX_FPS)
    names = [plan.captions[place] for place in kept]
    files = write_videos(arguments.out, drawn, kept, names, fps=fps, scale=scale)

    report = drawn.report
    new_frames = len(plan.captions) * (shown_frames - given_shown)
    rate = new_frames / report.seconds
    print(
        f"{report.images} videos, {new_frames} new frames in {report.seconds:.2f} s ({rate:.1f} frames/s), after "
        f"{report.compile_seconds:.1f} s to compile; {report.evaluations} network evaluations in {report.batches} "
        f"batches of {report.batch_size}"
    )
    if streams:
        print(f"streamed: the first new frame was there after {streams[0].first_frame:.3f} s")
    if scores is not None:
        print(f"kept: the likeliest {keep} of every {each}")
    unconditional = plan.kind.guided or not all(caption.strip() for caption in plan.captions)
    warn_of(report, "videos", untrained_null=not config.data.label_drop and unconditional)
    print(f"written: {arguments.out}")
    if arguments.json is not None:
        figures = {
            "workdir": str(arguments.workdir),
            "out": str(arguments.out),
            "step": step,
            "seed": arguments.seed,
            "videos": [
                {
                    "file": file,
                    "caption": plan.captions[place],
                    "place": int(plan.places[place]),
                    "log_likelihood": None if scores is None else float(scores[number]),
                }
                for number, (place, file) in enumerate(zip(kept, files, strict=True))
            ],
            "left_out": [{"caption": captions[place], "reason": reason} for place, reason in bad.items()],
            "candidates": arguments.candidates,
            "keep": None if scores is None else keep,
            "frames": shown_frames,
            "given_frames": given_shown,
            "size": list(shown_size),
            "fps": fps,
            "window": None if plan.kind.window is None else [plan.kind.window.frames, plan.kind.window.num_context],
            "solver": solver_figures(solver),
            "guidance": float(plan.scalars["weight"]),
            "denoise": plan.kind.denoise,
            "new_frames_per_second": rate,
            "first_frame_seconds": [report.first_frame for report in streams] if streams else None,
            "converged": report.converged,
            **dataclasses.asdict(report),
        }
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def size_of(arguments: argparse.Namespace, config: ExperimentConfig) -> tuple[int, int]:
    """Rows and columns: as trained, or the trained area in another aspect ratio."""
    rows, columns = config.flow.image_shape
    if arguments.aspect is None:
        return rows, columns
    from starflow_jax.data.decoding.buckets import image_size

    with sentences(image_size):
        return image_size(round((rows * columns) ** 0.5), arguments.aspect, config.flow.patch_size)


def _window(arguments: argparse.Namespace, config: ExperimentConfig):
    """The sliding window, its context adapted where only its length is given."""
    from starflow_jax.sampling.videos.video_plan import default_window
    from starflow_jax.solvers import SlidingWindow

    if arguments.window is None and config.data.frames < 2:
        raise CommandError(f"a run on clips of {config.data.frames} frame needs --window, got none")
    frames = arguments.window or config.data.frames
    window = default_window(frames)
    if arguments.context is None:
        return window
    if arguments.context >= frames:
        raise CommandError(f"--context must be below the {frames} frames of a window, got {arguments.context}")
    return SlidingWindow(frames, arguments.context)
