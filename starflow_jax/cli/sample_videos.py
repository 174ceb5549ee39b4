"""The output of `starflow sample` for videos: files, printed lines and figures."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import REFUSED, sentences
from starflow_jax.cli.options.sampling import readers
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_warnings import check_finite, print_warnings
from starflow_jax.cli.video_files import choose_scale, write_videos

if TYPE_CHECKING:
    from starflow_jax.sampling.loaded_run import Run
    from starflow_jax.sampling.sample_requests import SampleRequest
    from starflow_jax.sampling.video_requests import SampledVideos, VideoRequestPlan


def sample_videos(arguments: argparse.Namespace, run: Run, request: SampleRequest) -> int:
    """Samples the videos of a request, writes and reports them.

    Returns:
      An exit code: 0, or 2 where no caption can be read.
    """
    from tqdm import tqdm

    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.video_requests import draw_request, plan_request
    from starflow_jax.solvers.streaming.pipeline import check_streaming

    with sentences(*readers()):
        planned = plan_request(run, request, warn=remark)
    plan = planned.plan
    if plan is None:
        return REFUSED
    count = len(plan.captions) // planned.each * planned.keep
    scale = choose_scale(arguments.out, count, planned.frames, planned.size, arguments.scale)
    bar = tqdm(total=planned.new_flow_frames, unit="frame", disable=None, dynamic_ncols=True)
    with bar, sentences(check_streaming):
        result = draw_request(run, planned, progress=bar.update)
    if not is_first():
        return 0
    captions = [plan.captions[index] for index in result.kept]
    check_finite(result.samples.denoised[result.kept], "videos", arguments.write_non_finite)
    files = write_videos(arguments.out, result.samples, result.kept, captions, fps=planned.fps, scale=scale)

    report = result.samples.report
    new_frames = len(plan.captions) * (planned.frames - planned.given_frames)
    rate = new_frames / report.seconds
    print(
        f"{report.images} videos, {new_frames} new frames in {report.seconds:.2f} s ({rate:.1f} frames/s), after "
        f"{report.compile_seconds:.1f} s to compile; {report.evaluations} network evaluations in {report.batches} "
        f"batches of {report.batch_size}"
    )
    if result.streams:
        print(f"streamed: the first new frame was final after {result.streams[0].first_frame:.3f} s")
    if result.scores is not None:
        print(f"kept: the likeliest {planned.keep} of every {planned.each}")
    unconditional = plan.kind.guided or not all(caption.strip() for caption in plan.captions)
    print_warnings(report, "videos", untrained_null=not run.config.data.label_drop and unconditional)
    print(f"written: {arguments.out}")
    if arguments.json is not None:
        figures = {"workdir": str(run.workdir), "out": str(arguments.out), "step": run.step, "seed": request.seed}
        write_json(arguments.json, figures | _figures(run, planned, result, files, rate))
        print(f"JSON: {arguments.json}")
    return 0


def _figures(
    run: Run, planned: VideoRequestPlan, result: SampledVideos, files: Sequence[str], frames_per_second: float
) -> dict[str, Any]:
    """The figures of the videos for --json."""
    from starflow_jax.sampling.denoising import denoise_fields, recorded_denoising
    from starflow_jax.sampling.solver_choice import solver_figures

    plan, scores, report = planned.plan, result.scores, result.samples.report
    assert plan is not None
    window = plan.kind.window
    return {
        "videos": [
            {
                "file": file,
                "caption": plan.captions[index],
                "place": int(plan.places[index]),
                "log_likelihood": None if scores is None else float(scores[row]),
            }
            for row, (index, file) in enumerate(zip(result.kept, files, strict=True))
        ],
        "left_out": [{"caption": caption, "reason": reason} for caption, reason in planned.left_out],
        "candidates": planned.request.candidates,
        "keep": None if scores is None else planned.keep,
        "frames": planned.frames,
        "given_frames": planned.given_frames,
        "size": list(planned.size),
        "fps": planned.fps,
        "window": None if window is None else [window.frames, window.num_context],
        "solver": solver_figures(planned.solver),
        "guidance": float(plan.scalars["weight"]),
        **recorded_denoising(run.config, denoise_fields(planned.request)),
        "new_frames_per_second": frames_per_second,
        "first_frame_seconds": [stream.first_frame for stream in result.streams] if result.streams else None,
        "converged": report.converged,
        **dataclasses.asdict(report),
    }
