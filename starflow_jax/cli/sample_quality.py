"""`starflow evaluate --metrics`: FID and its kin of the pictures that a run draws, by weight of guidance."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.sample_quality import SAMPLES, folder_of
from starflow_jax.cli.options.scored_data import scored_source
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import remark
from starflow_jax.cli.sample_quality_parts import (
    check_bits,
    checked_drawing,
    chunk_folder,
    feature_network,
    pair_network,
    probe,
    references,
)
from starflow_jax.cli.sample_quality_plan import with_answers, with_marks

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.evaluation.samples.chunk_folder import ChunkFolder

_PREVIEW = 64  # pictures that are shown of every guidance


def measure_quality(arguments: argparse.Namespace, layout: Any) -> int:
    """Draws, measures and reports what the options ask; returns an exit code."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.evaluation.samples.feature_statistics import quality
    from starflow_jax.evaluation.samples.guidance_sweep import draw_missing, real_statistics, sample_figures
    from starflow_jax.evaluation.samples.metric_report import plot_quality, quality_table, write_csv
    from starflow_jax.training import load_run

    begun = time.perf_counter()
    with sentences(load_run):
        config, _, params, step = load_run(
            arguments.workdir, ema=not arguments.no_ema, layout=layout, step=arguments.step
        )
    config, drawing, weights = checked_drawing(arguments, config, params, step)
    out, total = folder_of(arguments), arguments.num_samples or SAMPLES
    reference, other = references(arguments, config)
    check_bits(arguments, config)
    network = feature_network(arguments, config, out, layout, reference)
    pairs, pairs_digest = pair_network(arguments)
    shape = probe(arguments, network, reference)
    network = with_answers(network, shape, out)
    folder = chunk_folder(arguments, config, params, step, drawing, network, pairs_digest, out)
    folder = with_marks(folder, drawing, pairs, shape)
    with ExitStack() as stack, sentences(_begin, real_statistics, draw_missing):
        if is_first():
            _begin(folder, stack)
        batch = drawing.batch_size
        try:
            real_ones = real_statistics(out, reference, network, batch, shape)
            others = None if other is None else real_statistics(out, other, network, batch, shape)
            for weight in weights:
                announce = _announced(folder, weight, total)
                draw_missing(folder, drawing, network, weight, total, pairs=pairs, drawn=announce)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("what was drawn is kept, and the same command goes on from it") from interrupt
    bits = _bits_per_dim(arguments, config, params)
    if not is_first():
        return 0

    assert real_ones is not None
    named = [name for name in arguments.metrics if name != "bpd"]
    rows = [sample_figures(folder, weight, total, real_ones, named) for weight in weights]
    floor = None
    if others is not None and other is not None:
        measured = quality(others, real_ones, [name for name in named if name != "clip"])
        floor = {"source": f"real: {other.name}", "samples": others.count, **measured}
    print(quality_table(rows, floor))
    print(
        f"{total} pictures a guidance against {real_ones.count} of {reference.name}, by the {network.name}; "
        f"step {step}, {'last parameters' if arguments.no_ema or not config.train.ema else 'running mean'}, "
        f"{time.perf_counter() - begun:.1f} s"
    )
    _caution(rows, len(real_ones.moments.mean), min(total, real_ones.count), "fid" in named)
    if bits is not None:
        print(f"bits/dim {bits['bits_per_dim']['mean']:.4f}, which guidance does not touch")
    figures = {
        "workdir": str(arguments.workdir),
        "step": step,
        "ema": bool(config.train.ema) and not arguments.no_ema,
        "features": network.name,
        "reference": {"name": reference.name, "pictures": real_ones.count},
        "plan": folder.plan,
        "rows": rows,
        "floor": floor,
        "bits_per_dim": bits,
    }
    write_json(out / "quality.json", figures)
    write_csv(out / "quality.csv", rows)
    plot_quality(out / "quality.png", rows, floor, f"{config.name}, {total} pictures, {network.name}")
    print(f"figures, plot, pictures: {out}/quality.json, .csv, .png, pictures-*.png")
    if arguments.json is not None:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def _begin(folder: ChunkFolder, stack: ExitStack) -> None:
    """Makes the folder this command's alone, until the stack ends."""
    from starflow_jax.training.checkpoints.workdir import in_use

    folder.claim()
    stack.enter_context(in_use(folder.path, "folder", "draws"))
    folder.drop_torn()


def _announced(folder: ChunkFolder, weight: float, total: int) -> Callable[[int, Any], None]:
    """Says on stderr how far a sweep is, and writes the first pictures of every guidance."""
    begun = time.perf_counter()

    def announce(number: int, samples: Any) -> None:
        from starflow_jax.evaluation.samples.sample_grids import class_columns, enlargement
        from starflow_jax.media import image_grid, write_png

        if not is_first():
            return
        done = min(total, (number + 1) * folder.size)
        remark(f"guidance {weight:g}: {done} of {total} pictures, {time.perf_counter() - begun:.0f} s")
        if number == 0:
            shown = samples.images[:_PREVIEW]
            columns = class_columns(int(samples.labels.max()) + 1, len(shown))
            shown = shown[: len(shown) // (columns or 1) * (columns or 1)]
            scale = enlargement(*shown.shape[1:3])
            write_png(folder.path / f"pictures-{weight:g}.png", image_grid(shown, columns), scale=scale)

    return announce


def _bits_per_dim(arguments: argparse.Namespace, config: ExperimentConfig, params: Any) -> dict[str, Any] | None:
    import jax

    from starflow_jax.evaluation import score_flow

    if "bpd" not in arguments.metrics:
        return None
    scores = score_flow(
        params,
        config.flow,
        scored_source(config, arguments.split),
        jax.random.key(arguments.seed),
        draws=arguments.draws or config.evaluate.draws,
        batch_size=arguments.batch or config.evaluate.batch_size,
        model=config.name,
    )
    return dataclasses.asdict(scores)


def _caution(rows: Any, width: int, count: int, fid: bool) -> None:
    lost = sum(row["non_finite"] for row in rows)
    if lost:
        remark(f"warning: {lost} pictures held values that are not finite, and count as black ones")
    open_chunks = sum(row["unconverged"] for row in rows)
    if open_chunks:
        remark(f"warning: {open_chunks} stretches of tokens did not converge; a lower --tolerance may change figures")
    if fid and count <= 10 * width:
        remark(
            f"warning: FID of {count} pictures by {width} features is biased upwards; compare it only with FIDs of as "
            "many pictures"
        )
