"""The output of `starflow sample` for a run on vectors: files of numbers, or a plot of a density in the plane."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_warnings import check_finite, print_warnings

if TYPE_CHECKING:
    from starflow_jax.sampling.loaded_run import Run
    from starflow_jax.sampling.sample_requests import SampleRequest


def sample_vectors(arguments: argparse.Namespace, run: Run, request: SampleRequest) -> int:
    """Samples vectors, writes and reports them; returns an exit code."""
    from starflow_jax.api.distributions import vector_shape
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling import check_request
    from starflow_jax.sampling.image_requests import draw_images, plan_images
    from starflow_jax.sampling.solver_choice import solver_figures
    from starflow_jax.solvers import named_solver
    from starflow_jax.training.inverse.inverse_folder import load_inverse
    from starflow_jax.training.run_calibration import read_calibration

    flow, out = run.config.flow, arguments.out
    request.check_kind(run.workdir, videos=False)
    shape = vector_shape(flow)
    if out.suffix not in (".npy", ".npz", ".csv", ".png"):
        raise CommandError(f"--out must end in .npy, .npz, .csv or .png for a run on vectors, got {str(out)!r}")
    if out.suffix == ".png" and np.prod(shape) != 2:
        raise CommandError(
            f"--out must end in .npy, .npz or .csv for vectors of {np.prod(shape)} numbers (of two it is drawn), "
            f"got {str(out)!r}"
        )
    with sentences(read_calibration, load_inverse, named_solver, check_request):
        plan = plan_images(run, request, warn=remark)
        result = draw_images(run, plan)
    if not is_first():
        return 0
    check_finite(result.x, "vectors", arguments.write_non_finite)
    x, labels = result.samples.x[result.kept].reshape(-1, *shape), plan.labels[result.kept]
    _write(out, x, labels, run)
    report = result.samples.report
    print(
        f"{report.images} vectors in {report.seconds:.2f} s, after {report.compile_seconds:.1f} s to compile; "
        f"{report.evaluations} network evaluations in {report.batches} batches of {report.batch_size}"
    )
    print_warnings(report, "vectors", untrained_null=False)
    print(f"written: {out}")
    if arguments.json is not None:
        figures = {
            "workdir": str(run.workdir),
            "out": str(out),
            "step": run.step,
            "seed": request.seed,
            "shape": list(x.shape),
            "solver": solver_figures(plan.solver),
            "guidance": plan.guidance,
            **dataclasses.asdict(report),
        }
        write_json(arguments.json, figures)
        print(f"JSON: {arguments.json}")
    return 0


def _write(out: Path, x: np.ndarray, labels: np.ndarray, run: Run) -> None:
    """Writes vectors [n, ...] and their classes [n], -1 for none, which `.npy` leaves out."""
    from starflow_jax.core.atomic_writing import replacing
    from starflow_jax.evaluation.likelihood.density_plot import plot_density

    if out.suffix == ".png":
        plot_density(out, run.params, run.config.flow, x.reshape(-1, 2), labels)
        return
    classes = bool(run.config.flow.num_classes or run.config.flow.text_dim)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        if out.suffix == ".npy":
            np.save(temporary, x)
        elif out.suffix == ".npz":
            arrays: dict[str, Any] = {"x": x} | ({"label": labels} if classes else {})
            np.savez_compressed(temporary, **arrays)
        else:
            flat = x.reshape(len(x), -1)
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([*(f"x{i}" for i in range(flat.shape[1])), *(["label"] if classes else [])])
                for row, label in zip(flat, labels, strict=True):
                    writer.writerow([*(repr(float(value)) for value in row), *([int(label)] if classes else [])])
