"""`starflow finetune-decoder`: trains the decoder of an autoencoder on noisy latents."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from starflow_jax.cli.commands.train_autoencoder import add_options, carry_out
from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.paths import path

ORDER = 140
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Trains the decoder of an autoencoder to decode noisy latents, or resumes where an earlier call stopped. The encoder is
frozen, so latents computed before, and flows trained on them, stay valid; samples of a flow can then be decoded
without removing the training noise first.

The loss is that of VQGAN: mean square error, LPIPS (loss.perceptual_weights names the files of its weights) and a
patch discriminator from loss.discriminator_start on, weighted by gradients at the last layer. loss.latent_noise is the
standard deviation of the noise. At the end the PSNR of held-out images from clean and noisy latents is printed, before
and after; the folder of --workdir receives the same files as with `starflow train-autoencoder`."""

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
        "--autoencoder", type=path, metavar="DIR", help="folder in the layout of diffusers (default: autoencoder)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import AutoencoderExperiment, load_experiment

    given = [] if arguments.autoencoder is None else [f"autoencoder={arguments.autoencoder}"]
    with sentences():
        experiment = load_experiment(AutoencoderExperiment, arguments.config, [*arguments.overrides, *given])

    from starflow_jax.reconstruction import FinetuneDecoderRequest

    with sentences(FinetuneDecoderRequest.__post_init__):
        request = FinetuneDecoderRequest(experiment, arguments.workdir, progress=not arguments.quiet)
    # A run is identified by where its autoencoder is, not by the folder that the command was started in.
    experiment = dataclasses.replace(experiment, autoencoder=str(Path(experiment.autoencoder or "").resolve()))
    return carry_out(dataclasses.replace(request, experiment=experiment), arguments.json)
