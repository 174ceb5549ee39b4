"""`starflow train-autoencoder`: trains a convolutional autoencoder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file, work_path
from starflow_jax.cli.stopped_training import report_stop

if TYPE_CHECKING:
    from starflow_jax.reconstruction import FinetuneDecoderRequest, TrainAutoencoderRequest, TrainedAutoencoder

SHEET = "reconstructions.png"

ORDER = 130
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Trains an autoencoder of images, or resumes where an earlier call stopped. The loss is the mean square error with a KL
penalty and, where the experiment asks for them, LPIPS and a patch discriminator.

The folder of --workdir receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard), and at the end
autoencoder/, in the layout of diffusers (AutoencoderKL), and reconstructions.png: held-out images above their
reconstructions. `starflow encode --autoencoder DIR/autoencoder` and data.autoencoder take it."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow train-autoencoder --config experiments/tiny_vae.py --workdir runs/vae
  starflow encode --config experiments/photos_latents.py --autoencoder runs/vae/autoencoder --out runs/latents/train
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "train-autoencoder", help="train an autoencoder of images", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: Any) -> None:
    """Declares the options of a training of an autoencoder or a decoder."""
    parser.add_argument(
        "--config", required=True, type=experiment_file, metavar="FILE[:VARIANT]", help="Python file with get_config()"
    )
    parser.add_argument(
        "--workdir", required=True, type=work_path, metavar="DIR", help="folder of the run: new, empty, or its own"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the final results as JSON")
    parser.add_argument("--quiet", action="store_true", help="show neither a progress bar nor lines of metrics")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import AutoencoderExperiment, load_experiment

    with sentences():
        experiment = load_experiment(AutoencoderExperiment, arguments.config, arguments.overrides)

    from starflow_jax.reconstruction import TrainAutoencoderRequest

    with sentences(TrainAutoencoderRequest.__post_init__):
        request = TrainAutoencoderRequest(experiment, arguments.workdir, progress=not arguments.quiet)
    return carry_out(request, arguments.json)


def carry_out(request: TrainAutoencoderRequest | FinetuneDecoderRequest, json: Path | None) -> int:
    """Trains and reports; returns an exit code.

    Args:
      json: receives the figures, None for no such file.
    """
    if json is not None:
        check_writable("--json", json)

    from starflow_jax.core.figures import write_json
    from starflow_jax.reconstruction import quality_table, train_autoencoder
    from starflow_jax.reconstruction.reconstruction_setup import Setup
    from starflow_jax.training import Checkpoints
    from starflow_jax.training.checkpoints.resume import restore_newest
    from starflow_jax.training.checkpoints.workdir import claim_workdir, in_use

    writing = (Checkpoints.save, Checkpoints.check, Checkpoints.__exit__)
    with sentences(Setup.from_experiment, claim_workdir, in_use, restore_newest, *writing):
        trained = train_autoencoder(request)
    if trained.stopped_by:
        return report_stop(trained.stopped_by, trained.step, request.experiment.train.steps)
    columns = {"before": trained.before, "after": trained.after} if trained.before else {"trained": trained.after}
    print(quality_table(columns))
    sheet = request.workdir / SHEET
    _write_sheet(sheet, trained)
    print(f"autoencoder: {trained.path}")
    print(f"{sheet}: from above images, " + ", ".join(trained.reconstructions))
    if json is not None:
        write_json(
            json,
            {
                "name": request.experiment.name,
                "workdir": str(request.workdir),
                "autoencoder": str(trained.path),
                "steps": trained.step,
                "seconds": trained.seconds,
                "metrics": dict(trained.metrics),
                "quality": {name: [row.to_dict() for row in rows] for name, rows in columns.items()},
            },
        )
    return 0


def _write_sheet(path: Path, trained: TrainedAutoencoder) -> None:
    """Writes held-out images above their reconstructions, at most 16 of them."""
    import numpy as np

    from starflow_jax.media.images import image_grid, write_png

    chosen = np.linspace(0, len(trained.images) - 1, min(16, len(trained.images))).astype(int)
    rows = [trained.images, *trained.reconstructions.values()]
    write_png(path, image_grid(np.concatenate([row[chosen] for row in rows]), len(chosen)), scale=2)
