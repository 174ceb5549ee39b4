"""`starflow data`: shows the data of an experiment and measures how fast it is read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, real
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.remarks import latents_are_fixed
from starflow_jax.core.choices import Split, choices

ORDER = 110
OVERRIDABLE = True

DESCRIPTION = """\
Shows the data of an experiment as the model reads them: sources, buckets, counts, shapes and shares of the batches; a
contact sheet with captions; the number of examples per second that the pipeline reads; and, for a trained run
(--workdir), whether this is as fast as its training step. Files that cannot be read are counted and named."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow data --config experiments/moving_digits.py --out sheet.png
  starflow data --config photos.py --config.data.threads=2 --workdir runs/photos --json data.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "data", help="show the data of an experiment", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="Python file with get_config()")
    parser.add_argument("--split", type=choice(*choices(Split)), default="train", help="train (default) or test")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write a contact sheet")
    parser.add_argument(
        "--seconds", type=real(), default=5.0, metavar="S", help="duration of the measurement (default: 5; 0 for none)"
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="a run, to compare with the speed of its training step"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import load_config

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
    for name, path in (("--out", arguments.out), ("--json", arguments.json)):
        if path is not None:
            check_writable(name, path)
    if arguments.out is not None and arguments.out.suffix.lower() != ".png":
        raise CommandError(f"--out must end in .png, got {arguments.out}")

    from starflow_jax.core.figures import text_table, write_json
    from starflow_jax.data.pipeline.batches import train_loader
    from starflow_jax.data.pipeline.loader import Loader
    from starflow_jax.data.pipeline.overview import overview, reading_rate
    from starflow_jax.media.contact_sheet import write_contact_sheet
    from starflow_jax.training.step.frozen_autoencoder import open_with_encoder
    from starflow_jax.training.step.inputs import latent_shape, word_encoder

    needed = None if arguments.workdir is None else _trained_rate(arguments.workdir)
    data, batch_size = config.data, config.train.batch_size
    with sentences(open_with_encoder, train_loader, overview, Loader.__next__):
        source, encoder_of_step = open_with_encoder(config, arguments.split)
        loader = train_loader(
            source, batch_size, config.seed, threads=data.threads, workers=data.workers, prefetch=data.prefetch
        )
        encoder = None if config.text is None else word_encoder(config)
        summary = overview(source, loader, batch_size, encoder)
        print(text_table(summary.rows()))
        print("\n".join(summary.notes()))
        if data.without_effect:
            print(latents_are_fixed(data.without_effect))
        if encoder_of_step is not None:
            latents = {latent_shape(encoder_of_step.autoencoder, part.shape) for part in summary.parts}
            print(
                f"the training step encodes them by {data.autoencoder} to latents of "
                + ", ".join("x".join(map(str, shape)) for shape in sorted(latents))
            )
        if arguments.out is not None:
            rows = [
                (
                    f"{part.name}: {part.count} examples, {'x'.join(map(str, part.shape))}, {100 * part.share:.1f} %",
                    [(_pixels(one["image"], part.source), _label(one, encoder)) for one in part.examples],
                )
                for part in summary.parts
            ]
            write_contact_sheet(arguments.out, rows)
            print(f"contact sheet: {arguments.out}")
        rate = reading_rate(loader, arguments.seconds) if arguments.seconds else None
        loader.close()
    skipped = {**summary.skipped, **loader.skipped.reasons}
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    figures = summary.figures() | {"examples_per_second": rate, "needed_per_second": needed, "skipped": skipped}
    if rate is not None:
        ahead = f"{data.workers} processes" if data.workers else f"{data.threads} threads"
        how = f"{ahead} reading ahead" if data.workers or data.threads else "nothing reading ahead"
        print(f"the pipeline alone reads {rate:.1f} examples a second, {how}")
    if rate is not None and needed is not None:
        figures["ratio"] = rate / needed
        verdict = "feeds" if rate >= needed else "does not feed"
        print(
            f"it {verdict} the run in {arguments.workdir}, which trains on {needed:.1f} a second: "
            f"{rate / needed:.2f} times as many"
        )
    if arguments.json is not None:
        write_json(arguments.json, figures)
    return 0


def _trained_rate(workdir: Path) -> float:
    """Median of the images per second of a run."""
    import statistics

    from starflow_jax.training.checkpoints.workdir import CSV_FILE
    from starflow_jax.training.loop.metrics import read_metrics

    path = workdir / CSV_FILE
    rates = [row["images_per_second"] for row in read_metrics(path) if row.get("images_per_second", 0) > 0]
    if not rates:
        raise CommandError(f"--workdir must hold a run that measured its images_per_second, got none in {path}")
    return statistics.median(rates)


def _pixels(image: Any, source: Any) -> Any:
    """Pixels 0..255 of an example; the first channels of latents without an autoencoder."""
    import numpy as np

    from starflow_jax.data.sources.latents import LatentSource
    from starflow_jax.media import to_uint8
    from starflow_jax.models.autoencoders import decode_latents

    if not isinstance(source, LatentSource):
        return np.rint(image * (255.0 / (source.levels - 1))).astype(np.uint8)
    try:
        return to_uint8(decode_latents(image, Path(source.files[0]).parent))
    except ValueError:
        return to_uint8(image[..., : 3 if image.shape[-1] >= 3 else 1] / 3)


def _label(example: Any, encoder: Any) -> str:
    """The condition of an example: its caption, with the words of the vocabulary, or its class."""
    if encoder is not None and "text" in example:
        known = encoder.words(example["text"])
        caption = example.get("caption", known)
        return known if " ".join(caption.lower().split()) == known else f"{caption}\n-> {known or '(nothing)'}"
    if "text_states" in example or "text" in example:
        return example.get("caption", "")
    return f"class {example['label']}" if example["label"] >= 0 else ""
