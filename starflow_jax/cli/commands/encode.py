"""`starflow encode`: precomputes latents and text states of a data set."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import choice, integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import with_text_encoder
from starflow_jax.cli.options.devices import add_processes, join
from starflow_jax.cli.options.dry_run import add_dry_run, show
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file, output_path, read_path
from starflow_jax.cli.process_group import is_first
from starflow_jax.cli.remarks import latents_are_fixed, remark
from starflow_jax.core.choices import Dtype, LatentDtype, Split, choices

if TYPE_CHECKING:
    from starflow_jax.training.latent_encoding import Encoded

ORDER = 120
OVERRIDABLE = True
COMPILES = True

DESCRIPTION = """\
Encodes the data of an experiment with a frozen autoencoder and writes ArrayRecord files. The experiment then trains on
them with --config.data.source=latents --config.data.path=DIR. The size of images is flow.image_size times the stride of
the autoencoder. Captions are encoded, too, where the experiment has a vocabulary or a text encoder: the folder of a
pretrained one (--text-encoder, or data.text_encoder).

The autoencoder is a .npz file or a folder in the layout of diffusers (--autoencoder), the first C principal components
of patches of P x P pixels (--fit-patch-pca P:C), or that of data.autoencoder; without any, latents are pixels. It is
stored with the latents as autoencoder.npz or autoencoder/. A mixture is encoded into one folder, images and clips
together, with its weights."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow encode --config photos.py --fit-patch-pca 8:16 --out latents/train
  starflow encode --config photos.py --autoencoder latents/train/autoencoder.npz --split test --out latents/test
  starflow encode --config photos.py --text-encoder flan-t5-xl --out latents/train
  starflow encode --config photos.py --autoencoder sd-vae-ft-mse --compute bfloat16 --out latents/train
  starflow train --config photos.py --config.data.source=latents --config.data.path=latents --workdir runs/latent
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "encode", help="precompute latents and text states", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--config", required=True, type=experiment_file, metavar="FILE[:VARIANT]", help="Python file with get_config()"
    )
    parser.add_argument(
        "--out", required=True, type=output_path, metavar="DIR", help="folder of the latents: new or empty"
    )
    parser.add_argument("--split", type=choice(*choices(Split)), default="train", help="train (default) or test")
    parser.add_argument(
        "--limit", type=integer(1), metavar="N", help="encode the first N examples only, unreadable ones included"
    )
    parser.add_argument(
        "--autoencoder", type=read_path, metavar="PATH", help=".npz file or folder (default: data.autoencoder)"
    )
    parser.add_argument("--text-encoder", type=read_path, metavar="DIR", help="a folder (default: data.text_encoder)")
    parser.add_argument(
        "--compute",
        type=choice(*choices(Dtype)),
        help="dtype of the computations of the autoencoder (default: data.autoencoder_dtype)",
    )
    parser.add_argument(
        "--tile",
        type=integer(8),
        metavar="N",
        help="encode tiles of N x N latent positions with a blended overlap of N / 4, for large frames",
    )
    parser.add_argument(
        "--fit-patch-pca",
        type=patch_and_channels,
        metavar="P:C",
        help="fit a patch PCA of patch size P with C channels",
    )
    parser.add_argument(
        "--fit-images", type=integer(1), default=2000, metavar="N", help="number of images for the fit (default: 2000)"
    )
    parser.add_argument(
        "--dtype",
        type=choice(*choices(LatentDtype)),
        default="float16",
        help="dtype of the files (default: float16)",
    )
    parser.add_argument("--batch-size", type=integer(1, 4096), default=32, metavar="B", help="batch size (default: 32)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_dry_run(parser)
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.config import load_config

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
    config = with_text_encoder(config, arguments.text_encoder)

    from starflow_jax.training.encode_request import EncodeRequest

    request = build_request(EncodeRequest, arguments, config=config)
    check_new_folder("--out", request.out)

    import jax
    from tqdm import tqdm

    from starflow_jax.training.latent_encoding import encode_data, open_encoding

    join(arguments)
    if not arguments.quiet:
        for part in config.data.mixture or (config.data,):
            if part.augmentations:
                remark(latents_are_fixed(part.augmentations))
    begin = time.perf_counter()
    with sentences(open_encoding, encode_data):
        encoding = open_encoding(request)
        for note in encoding.notes:
            remark(note)
        if arguments.dry_run:
            from starflow_jax.training.encode_outline import encode_outline

            return show(encode_outline(encoding), arguments)
        with tqdm(total=encoding.total, disable=arguments.quiet or not is_first(), unit="example") as bar:
            # All processes progress at about the same rate.
            encoded = encode_data(
                request, encoding=encoding, progress=lambda count: bar.update(count * jax.process_count())
            )
    if is_first():
        _print_figures(request.out, encoding.source.name, encoded, time.perf_counter() - begin, arguments.json)
    return 0


def _print_figures(out: Path, source: str, encoded: Encoded, seconds: float, json: Path | None) -> None:
    """Prints what was encoded, and writes it as JSON where a file is given."""
    from starflow_jax.core.figures import write_json

    count = sum(encoded.counts.values())
    shapes = ", ".join(f"{num} of {'x'.join(map(str, shape))}" for shape, num in encoded.counts.items())
    print(f"{out}: {count} latents ({shapes}) of {source}, {count / seconds:.1f} a second")
    for name, reason in encoded.skipped.reasons.items():
        print(f"skipped {name}: {reason}")
    if json is not None:
        write_json(
            json,
            {
                "out": str(out),
                "source": source,
                "count": count,
                "shapes": [{"shape": shape, "count": num} for shape, num in encoded.counts.items()],
                "skipped": encoded.skipped.bad,
                "skipped_names": encoded.skipped.reasons,
                "seconds": seconds,
            },
        )


def patch_and_channels(text: str) -> tuple[int, int]:
    """Parses the patch size and the number of channels of a patch PCA, such as `8:16`."""
    patch, _, channels = text.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,3}:[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be PATCH:CHANNELS, such as 8:16, got {text!r}")
    return int(patch), int(channels)
