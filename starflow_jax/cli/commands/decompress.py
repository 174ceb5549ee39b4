"""`starflow decompress`: the images or clips of a file of `starflow compress`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_new_folder, check_writable
from starflow_jax.cli.options.stored import output_file, output_path, read_path
from starflow_jax.cli.options.trained_model import add_checkpoint, add_trained_model

ORDER = 73
COMPILES = True

DESCRIPTION = """\
Restores the images or clips of a file of starflow compress, with the run that compressed them.

A file that is damaged, or was made by another run, another version or another kind of device, is refused before
anything is decoded. --out NAME.npz receives all images as one array; any other name is a new folder of PNG files, or
of folders of frames, which are written as they are decoded and appear when all of them have been checked."""

EXAMPLES = """\
examples:
  starflow decompress --workdir runs/photos holiday.sfz --out restored
  starflow decompress --workdir runs/digits digits.sfz --out digits.npz
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "decompress", help="restore what starflow compress wrote", description=DESCRIPTION, epilog=EXAMPLES
    )
    option = parser.add_argument
    option("file", type=read_path, metavar="FILE", help="a file of starflow compress")
    add_trained_model(parser)
    add_checkpoint(parser)
    option("--out", required=True, type=output_path, metavar="PATH", help="a new folder, or NAME.npz")
    option("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.sampling.sample_requests import RunRequest

    request = build_request(RunRequest, arguments, ema=not arguments.no_ema)
    if arguments.out.suffix == ".npz":
        check_writable("--out", arguments.out)
    else:
        check_new_folder("--out", arguments.out)
    if arguments.json is not None and arguments.json.absolute() == arguments.out.absolute():
        raise CommandError(f"--json must be another file than --out, got {str(arguments.out)!r} for both")

    from starflow_jax.compression.file_format import read_file
    from starflow_jax.compression.image_codec import Decoder
    from starflow_jax.compression.pixel_files import write_decoded
    from starflow_jax.core.figures import write_json
    from starflow_jax.core.regular_files import read_bytes
    from starflow_jax.sampling.loaded_run import open_run

    begin = time.perf_counter()
    with sentences(read_bytes):
        data = read_bytes(arguments.file)
    with _naming(arguments.file), sentences(read_file):
        read_file(data)  # a damaged file is refused before the run is read
    with sentences(open_run):
        model = open_run(request)
    with _naming(arguments.file), sentences(Decoder.__init__, write_decoded):
        decoder = Decoder(model, data)
        count = write_decoded(decoder, arguments.out)
    seconds, what = time.perf_counter() - begin, "clips" if decoder.header.frames else "images"
    print(f"{count} {what} of {len(data)} bytes in {seconds:.1f} s; written: {arguments.out}")
    if arguments.json is not None:
        figures = {"workdir": str(model.workdir), "step": model.step, "out": str(arguments.out), "images": count}
        write_json(arguments.json, figures | {"bytes": len(data), "names": list(decoder.names), "seconds": seconds})
        print(f"JSON: {arguments.json}")
    return 0


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Names the file in a CommandError."""
    try:
        yield
    except CommandError as error:
        raise CommandError(f"{file} cannot be decompressed: {error}", error.code) from error
