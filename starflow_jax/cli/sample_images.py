"""`starflow sample` of a run on still images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.captions import read_said
from starflow_jax.cli.options.solver import chosen_solver, solver_figures
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.sample_warnings import warn_of
from starflow_jax.core.config.experiment import ExperimentConfig


def draw_pictures(arguments: argparse.Namespace, config: ExperimentConfig, params: dict[str, Any], step: int) -> int:
    """Draws, writes and reports what the options ask of a run's flow; returns an exit code."""
    import jax

    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.samples.sample_grids import class_columns
    from starflow_jax.sampling import check_request, class_labels, sample
    from starflow_jax.sampling.ranking import likeliest, log_likelihoods
    from starflow_jax.training.step.inputs import condition

    out = arguments.out
    text = None
    if out.suffix in (".mp4", ".gif"):
        raise CommandError(f"--out must end in .png or .npz for a run on still images, got {str(out)!r}")
    classes = config.flow.num_classes or config.flow.text_dim
    said = read_said(arguments, config)
    label = ("none" if said else "all") if arguments.label is None else arguments.label
    if said is not None:
        each = arguments.candidates or arguments.num or config.sample.num
        rows = np.repeat(np.arange(len(said.captions)), each)
        labels, text = np.full(len(rows), -1, np.int32), said.text[rows]
    elif arguments.candidates is not None:
        every = np.arange(max(classes, 1)) if label == "all" and classes else [label if isinstance(label, int) else -1]
        labels = np.repeat(np.asarray(every, np.int32), arguments.candidates)
    elif label == "all":
        labels = class_labels(config, arguments.num or config.sample.num)
    else:
        labels = np.full(arguments.num or config.sample.num, -1 if label == "none" else label, np.int32)
    guidance = arguments.guidance
    if guidance is None:  # what the configuration says is meant for pictures of a class
        meant = (labels >= 0).any() if said is None else any(caption.strip() for caption in said.captions)
        guidance = config.sample.guidance if meant else 0.0
    batch_size, keep = arguments.batch or 64, arguments.keep or 1
    solver = chosen_solver(arguments, config, step=step, batch=min(batch_size, len(labels)))
    with sentences(check_request):
        drawn = sample(
            params,
            config,
            jax.random.key(arguments.seed),
            labels,
            text=text,
            null=None if said is None else said.null,
            solver=solver,
            guidance=guidance,
            temperature=arguments.temperature,
            attention_temperature=arguments.attention_temperature,
            denoise=arguments.denoise,
            batch_size=batch_size,
        )
    kept, scores = np.arange(len(labels)), None
    if arguments.candidates is not None:
        cond = condition(jax.numpy.asarray(labels), config.flow) if text is None else text
        known = None if cond is None else np.asarray(cond)
        found = log_likelihoods(params, config.flow, drawn.noisy, known, batch_size=batch_size)
        kept = likeliest(found, arguments.candidates, keep)
        scores = found[kept]
    if not is_first():
        return 0
    # Pictures of all classes: a column for each class. The likeliest of each class or caption, and all pictures of
    # each caption, stand side by side.
    columns = class_columns(config.flow.num_classes if label == "all" else 0, len(labels))
    if scores is not None and len(kept) > keep:
        columns = keep
    elif said is not None and len(said.captions) > 1:
        columns = each
    labels = labels[kept]
    captions = None if said is None else [said.captions[row] for row in rows[kept]]
    _write(out, drawn.images[kept], drawn.x[kept], labels, arguments.scale, columns, captions)

    report = drawn.report
    print(
        f"{report.images} pictures in {report.seconds:.2f} s, after {report.compile_seconds:.1f} s to compile; "
        f"{report.evaluations} network evaluations in {report.batches} batches of {report.batch_size}"
    )
    if scores is not None:
        print(f"kept: the likeliest {keep} of every {arguments.candidates}")
    dropped = (drawn.labels < 0).any() if said is None else not all(caption.strip() for caption in said.captions)
    unconditional = guidance > 0 or dropped
    warn_of(report, "pictures", untrained_null=bool(classes and not config.data.label_drop and unconditional))
    print(f"written: {out}")
    if arguments.json is not None:
        figures = {
            "workdir": str(arguments.workdir),
            "out": str(out),
            "step": step,
            "seed": arguments.seed,
            "class": label if said is None else None,
            "captions": None if said is None else list(said.captions),
            "left_out": [] if said is None else [{"caption": c, "reason": why} for c, why in said.left_out],
            "solver": solver_figures(solver),
            "guidance": guidance,
            "converged": report.converged,
            **dataclasses.asdict(report),
        }
        if scores is not None:
            figures |= {
                "candidates": arguments.candidates,
                "keep": keep,
                "kept": [
                    {
                        "class": int(number),
                        "caption": None if captions is None else captions[row],
                        "candidate": int(place) % arguments.candidates,
                        "log_likelihood": float(score),
                    }
                    for row, (number, place, score) in enumerate(zip(labels, kept, scores, strict=True))
                ],
            }
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def _write(
    out: Path,
    images: np.ndarray,
    x: np.ndarray,
    labels: np.ndarray,
    scale: int | None,
    columns: int | None,
    captions: Sequence[str] | None,
) -> None:
    from starflow_jax.core.files import replacing, replacing_folder
    from starflow_jax.evaluation.samples.sample_grids import enlargement
    from starflow_jax.media import image_grid, write_png

    scale = enlargement(*images.shape[1:3]) if scale is None else scale
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        write_png(out, image_grid(images, columns), scale=scale)
    elif out.suffix == ".npz":
        with replacing(out) as temporary:
            arrays: dict[str, Any] = {"image": images, "x": x}
            arrays |= {"label": labels} if captions is None else {"caption": np.asarray(captions)}
            np.savez_compressed(temporary, **arrays)
    else:
        digits = len(str(len(images) - 1))
        with replacing_folder(out) as folder:
            for number, image in enumerate(images):
                write_png(folder / f"{number:0{digits}d}.png", image, scale=scale)
