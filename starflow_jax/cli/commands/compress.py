"""`starflow compress`: a lossless file of images or clips, by the likelihood of a trained run."""

from __future__ import annotations

import argparse
import time
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import integer, shortened
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.caption_options import read_captions
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.stored import output_file, output_path, read_path
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model

ORDER = 72
COMPILES = True

DESCRIPTION = """\
Writes images or clips losslessly into one file, whose length is their -log2 p(x) under a trained run on pixels.

IMAGES are files of the run's own size, channels and levels: images, or folders of them; for a run on clips videos or
folders of frames; or .npy and .npz files of integers [n, H, W, C] or [n, T, H, W, C]. Their pixels are kept, and not
the bytes of the files. Of videos, animations and folders of frames, the decoded frames are kept: 8 bits a channel, with
transparent pixels on white. The file is decoded again before the command ends.

Only the same run decodes the file, with the same versions of this package and of JAX, on the same kind of device. On a
machine whose arithmetic differs all the same, the file is refused."""

EXAMPLES = """\
examples:
  starflow compress --workdir runs/photos holiday --out holiday.sfz
  starflow compress --workdir runs/digits digits.npz --class auto --out digits.sfz --json digits.json
  starflow compress --workdir runs/video clips.npz --caption captions.txt --out clips.sfz
  starflow decompress --workdir runs/photos holiday.sfz --out restored
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "compress", help="losslessly compress images or clips by a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("images", nargs="+", type=read_path, metavar="IMAGES", help="files or folders of images or clips")
    add_trained_model(parser)
    add_checkpoint(parser)
    option("--out", required=True, type=output_path, metavar="FILE", help="the compressed file")
    option(
        "--class",
        dest="label",
        type=class_of_all,
        default="auto",
        metavar="N|auto|none",
        help="runs with classes: that of all images, the likeliest of each (default), which the file stores, or none",
    )
    option(
        "--caption",
        dest="captions",
        action="append",
        metavar="TEXT|FILE.txt",
        help="runs with captions: one for all or one for each, which the file stores (default: the empty caption)",
    )
    option(
        "--batch",
        dest="batch_size",
        type=integer(1, 4096),
        default=64,
        metavar="N",
        help="images computed together, in both directions (default 64)",
    )
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def class_of_all(text: str) -> int | str:
    """Parses a class number, "auto" or "none"."""
    if text in ("auto", "none"):
        return text
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a class number, auto or none, got {shortened(text)!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.sampling.sample_requests import RunRequest

    request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    check_writable("--out", arguments.out)
    if arguments.json is not None and arguments.json.absolute() == arguments.out.absolute():
        raise CommandError(f"--json must be another file than --out, got {str(arguments.out)!r} for both")
    captions = None if arguments.captions is None else read_captions(arguments.captions)

    import numpy as np

    from starflow_jax.compression.image_codec import check_model, compress
    from starflow_jax.compression.pixel_files import read_pixels
    from starflow_jax.core.atomic_writing import replacing
    from starflow_jax.core.figures import write_json
    from starflow_jax.sampling.loaded_run import open_run

    begin = time.perf_counter()
    with sentences(open_run, check_model, read_pixels, compress):
        model = open_run(request)
        check_model(model)
        flow, clips = model.config.flow, bool(model.config.data.frames)
        images, names = read_pixels(arguments.images, flow.channels, clips=clips)
        if captions is not None and not flow.text_dim:
            raise CommandError("--caption is for runs that read captions, and this run reads none")
        cond: Any = captions if captions is not None else arguments.label
        if arguments.label == "none" and captions is None:
            cond = None
        elif isinstance(arguments.label, int):
            if not arguments.label < flow.num_classes:
                allowed = f"below the {flow.num_classes} classes of the run" if flow.num_classes else "left out"
                raise CommandError(f"--class must be {allowed}, got {arguments.label}")
            cond = np.full(len(images), arguments.label, np.int32)
        data = compress(model, images, cond, names=names, batch_size=arguments.batch_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary:
        temporary.write_bytes(data)
    seconds, bits = time.perf_counter() - begin, 8 * len(data) / images.size
    what = "clips" if clips else "images"
    print(f"{len(images)} {what}, {images.size} values of one byte each in {len(data)} bytes: {bits:.4f} bits/dim")
    print(f"decoded and found equal; {seconds:.1f} s; written: {arguments.out}")
    if arguments.json is not None:
        figures = {"workdir": str(model.workdir), "step": model.step, "out": str(arguments.out), "images": len(images)}
        figures |= {"values": images.size, "bytes": len(data), "bits_per_dim": bits, "seconds": seconds}
        write_json(arguments.json, figures)
        print(f"JSON: {arguments.json}")
    return 0
