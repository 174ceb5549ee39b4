"""`starflow finetune-decoder`: trains the decoder of an autoencoder on noisy latents."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.cli.commands.train_autoencoder import add_options, carry_out
from starflow_jax.cli.errors import CommandError, sentences

ORDER = 140
OVERRIDABLE = True

DESCRIPTION = """\
Trains the decoder of an autoencoder to make pictures of noisy latents, or goes on where an earlier call stopped. The
encoder stays as it is, so latents that were computed before, and flows that were trained on them, stay valid; what a
flow draws can then be decoded without removing the training noise first.

The loss is that of VQGAN: mean square error, LPIPS (its weights are files that loss.perceptual_weights names) and a
patch discriminator from loss.discriminator_start on, weighed by gradients at the last layer. loss.latent_noise is the
standard deviation of the noise. At the end PSNR of held-out pictures from clean and noisy latents is printed, before
and after; the folder of --workdir receives what `starflow train-autoencoder` writes."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow finetune-decoder --config experiments/tiny_vae.py:decoder --autoencoder runs/vae/autoencoder \\
      --workdir runs/decoder
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "finetune-decoder", help="train a decoder on noisy latents", description=DESCRIPTION, epilog=EXAMPLES
    )
    add_options(parser)
    parser.add_argument(
        "--autoencoder", type=Path, metavar="DIR", help="folder in the layout of diffusers (default: autoencoder)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import AutoencoderExperiment, load_experiment

    given = [] if arguments.autoencoder is None else [f"autoencoder={arguments.autoencoder}"]
    with sentences():
        experiment = load_experiment(AutoencoderExperiment, arguments.config, [*arguments.overrides, *given])
        if experiment.network is not None:
            raise CommandError("network must be None to fine-tune a decoder, got that of a new autoencoder")
        # Runs are told apart by where their autoencoder is, not by the folder they were started in.
        experiment = dataclasses.replace(experiment, autoencoder=str(Path(experiment.autoencoder or "").resolve()))
    return carry_out(arguments, experiment)
