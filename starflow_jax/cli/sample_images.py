"""The output of `starflow sample` for images: files, printed lines and figures."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.sampling import readers
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_warnings import check_finite, print_warnings

if TYPE_CHECKING:
    from starflow_jax.sampling.image_requests import ImagePlan, SampledImages
    from starflow_jax.sampling.loaded_run import Run
    from starflow_jax.sampling.sample_requests import SampleRequest


def sample_images(arguments: argparse.Namespace, run: Run, request: SampleRequest) -> int:
    """Samples the images of a request, writes and reports them; returns an exit code."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.image_requests import draw_images, plan_images

    request.check_kind(run.workdir, videos=False)
    if arguments.out.suffix in (".mp4", ".gif", ".npy", ".csv"):
        raise CommandError(f"--out must end in .png or .npz for a run on still images, got {str(arguments.out)!r}")
    with sentences(*readers()):
        plan = plan_images(run, request, warn=remark)
        result = draw_images(run, plan)
    if not is_first():
        return 0
    captions = None if plan.captions is None else [plan.captions.captions[row] for row in plan.rows[result.kept]]
    check_finite(result.x, "images", arguments.write_non_finite)
    _write(arguments.out, result, plan.labels[result.kept], captions, arguments.scale, _columns(run, plan, result))

    report = result.samples.report
    print(
        f"{report.images} images in {report.seconds:.2f} s, after {report.compile_seconds:.1f} s to compile; "
        f"{report.evaluations} network evaluations in {report.batches} batches of {report.batch_size}"
    )
    if result.scores is not None:
        print(f"kept: the likeliest {request.keep or 1} of every {request.candidates}")
    print_warnings(report, "images", untrained_null=_uses_untrained_null(run, plan))
    print(f"written: {arguments.out}")
    if arguments.json is not None:
        figures = {"workdir": str(run.workdir), "out": str(arguments.out), "step": run.step, "seed": request.seed}
        write_json(arguments.json, figures | _figures(run, plan, result, captions))
        print(f"JSON: {arguments.json}")
    return 0


def _columns(run: Run, plan: ImagePlan, result: SampledImages) -> int | None:
    """The columns of the grid: one for each class; or the images of one class or caption in a row."""
    from starflow_jax.evaluation.samples.sample_grids import class_columns

    keep = plan.request.keep or 1
    if result.scores is not None and len(result.kept) > keep:
        return keep
    if plan.captions is not None and len(plan.captions.captions) > 1:
        return plan.each
    return class_columns(run.config.flow.num_classes if plan.label == "all" else 0, len(plan.labels))


def _uses_untrained_null(run: Run, plan: ImagePlan) -> bool:
    """Whether images depend on the prediction without a condition, which the training did not cover."""
    flow = run.config.flow
    if not (flow.num_classes or flow.text_dim) or run.config.data.label_drop:
        return False
    if plan.captions is None:
        dropped = bool((plan.labels < 0).any())
    else:
        dropped = not all(caption.strip() for caption in plan.captions.captions)
    return plan.guidance > 0 or dropped


def _figures(run: Run, plan: ImagePlan, result: SampledImages, captions: Sequence[str] | None) -> dict[str, Any]:
    """The figures of the images for --json."""
    from starflow_jax.sampling.denoising import denoise_fields, recorded_denoising
    from starflow_jax.sampling.solver_choice import solver_figures

    read, candidates = plan.captions, plan.request.candidates
    figures = {
        "class": plan.label if read is None else None,
        "captions": None if read is None else list(read.captions),
        "left_out": [] if read is None else [{"caption": c, "reason": why} for c, why in read.left_out],
        "solver": solver_figures(plan.solver),
        "guidance": plan.guidance,
        **recorded_denoising(run.config, denoise_fields(plan.request)),
        "converged": result.samples.report.converged,
        **dataclasses.asdict(result.samples.report),
    }
    if result.scores is None or candidates is None:
        return figures
    kept_samples = [
        {
            "class": int(plan.labels[index]),
            "caption": None if captions is None else captions[row],
            "candidate": int(index) % candidates,
            "log_likelihood": float(score),
        }
        for row, (index, score) in enumerate(zip(result.kept, result.scores, strict=True))
    ]
    return figures | {"candidates": candidates, "keep": plan.request.keep or 1, "kept": kept_samples}


def _write(
    out: Path,
    result: SampledImages,
    labels: np.ndarray,
    captions: Sequence[str] | None,
    scale: int | None,
    columns: int | None,
) -> None:
    from starflow_jax.core.atomic_writing import replacing, replacing_folder
    from starflow_jax.evaluation.samples.sample_grids import enlargement
    from starflow_jax.media import image_grid, write_png

    images = result.images
    scale = enlargement(*images.shape[1:3]) if scale is None else scale
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_png(out, image_grid(images, columns), scale=scale)
    elif out.suffix == ".npz":
        with replacing(out) as temporary:
            arrays: dict[str, Any] = {"image": images, "x": result.samples.x[result.kept]}
            arrays |= {"label": labels} if captions is None else {"caption": np.asarray(captions)}
            np.savez_compressed(temporary, **arrays)
    else:
        digits = len(str(len(images) - 1))
        with replacing_folder(out) as folder:
            for index, image in enumerate(images):
                write_png(folder / f"{index:0{digits}d}.png", image, scale=scale)
