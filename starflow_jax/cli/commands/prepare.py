"""`starflow prepare`: writes data as sharded ArrayRecord for training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import choice, integer, shortened
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_new_folder
from starflow_jax.cli.options.paths import path
from starflow_jax.cli.options.stored import output_file, work_path
from starflow_jax.cli.remarks import remark
from starflow_jax.core.choices import CaptionLines, PreparedKind, TarKeys, choices

if TYPE_CHECKING:
    from starflow_jax.data.sources.image_manifest import Manifest

ORDER = 115

DESCRIPTION = """\
Writes images with their captions, labels and sizes as shards of ArrayRecord, which training reads in any order:
--config.data.source=prepared --config.data.path=DIR. The image files are stored as they are; those that cannot be read
are counted, named and left out. The folder is read once its manifest is there, which is written last. After an
interruption the same command continues with the shards that are missing, and writes the same bytes.

KIND is what SOURCE is: a folder of images, tars in the WebDataset layout (a file, a pattern or a folder), parquet files
in the layout of Hugging Face, or the name of a data set of TensorFlow Datasets. Only a data set that is not prepared
yet needs TensorFlow: pip install 'starflow-jax[prepare]'."""

EXAMPLES = """\
examples:
  starflow prepare folder photos --out prepared
  starflow prepare tar 'laion/train-*.tar' --out prepared --workers 8 --json prepared.json
  starflow prepare parquet shards --features image=jpg,caption=txt --out prepared
  starflow prepare tfds mnist --out mnist
  starflow prepare tfds coco_captions --features caption=captions/text --splits train,test=val --out coco
  starflow prepare tfds eurosat --splits train=train[:90%],test=train[90%:] --out eurosat
  starflow train --config photos.py --config.data.source=prepared --config.data.path=prepared --workdir runs/photos
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "prepare", help="write data as sharded ArrayRecord", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "kind", type=choice(*choices(PreparedKind)), metavar="KIND", help="folder, tar, parquet or tfds"
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder, file, pattern or data set")
    parser.add_argument(
        "--out", required=True, type=work_path, metavar="DIR", help="a new folder, or one that the same command began"
    )
    parser.add_argument(
        "--splits",
        type=renaming,
        metavar="NAME[=SOURCE],...",
        help="splits to write (default: all); of tfds also parts, and under other names: test=train[90%%:]",
    )
    parser.add_argument(
        "--features",
        type=pairs,
        metavar="NAME=SOURCE,...",
        help="features of tfds or columns of parquet for image, label and caption; the key of captions in JSON files",
    )
    parser.add_argument(
        "--data-dir", type=path, metavar="DIR", help="folder of data sets of tfds (default: that of the library)"
    )
    parser.add_argument(
        "--shards", type=integer(1, 10**6), metavar="N", help="shards of a split (default: one for 10,000 examples)"
    )
    parser.add_argument("--workers", type=integer(0, 1024), default=0, metavar="N", help="processes (default: 0)")
    parser.add_argument(
        "--caption-lines",
        type=choice(*choices(CaptionLines)),
        help="whether a text file is one caption (default), or its lines are alternatives",
    )
    parser.add_argument(
        "--tar-keys", type=choice(*choices(TarKeys)), help="where the keys of tars end: first dot (default), last dot"
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image to its end, and leave out those that are damaged"
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from tqdm import tqdm

    from starflow_jax.data.preparation.prepare import is_begun, open_preparation, prepare
    from starflow_jax.data.preparation.prepare_request import PrepareRequest

    if not is_begun(arguments.out):
        check_new_folder("--out", arguments.out)
    request = build_request(PrepareRequest, arguments)
    begin = time.perf_counter()
    try:
        with sentences(open_preparation, prepare):
            preparation = open_preparation(request)
            with tqdm(total=preparation.total, disable=arguments.quiet, unit="example") as bar:
                manifest = prepare(preparation, progress=bar.update)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues with the shards that are missing") from None
    _print_figures(request.out, manifest, time.perf_counter() - begin, arguments.json)
    return 0


def _print_figures(out: Path, manifest: Manifest, seconds: float, json: Path | None) -> None:
    """Prints what was written, and writes it as JSON where a file is given."""
    from starflow_jax.core.figures import text_table, write_json

    head = ["split", "examples", "skipped", "captions", "shards", "MB"]
    rows = [head]
    for name, split in manifest.splits.items():
        captions = sum(number for origin, number in split.captions.items() if origin)
        rows.append(
            [name, *map(str, (split.count, split.skipped, captions, len(split.shards))), f"{split.bytes / 1e6:.1f}"]
        )
    print(text_table(rows))
    if manifest.classes:
        print(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(manifest.classes[:20]))}")
    for note in manifest.notes:
        remark(note)
    for split in manifest.splits.values():
        for reason, number in split.reasons.items():
            print(f"skipped {number}: {reason}")
    print(f"written: {out}; train on it with --config.data.source=prepared --config.data.path={out}")
    if json is not None:
        splits = {
            name: {
                "examples": split.count,
                "skipped": split.skipped,
                "reasons": split.reasons,
                "names": split.names,
                "captions": split.captions,
                "shards": len(split.shards),
                "bytes": split.bytes,
                "fingerprint": split.fingerprint,
            }
            for name, split in manifest.splits.items()
        }
        write_json(
            json,
            {
                "out": str(out),
                "source": manifest.source,
                "kind": manifest.kind,
                "splits": splits,
                "num_classes": manifest.num_classes,
                "class_names": manifest.classes,
                "notes": manifest.notes,
                "seconds": seconds,
            },
        )


def renaming(text: str) -> tuple[tuple[str, str], ...]:
    """Parses NAME or NAME=SOURCE, separated by commas; a name alone is that of the source, too."""
    read = []
    for part in text.split(","):
        name, equals, stored = (piece.strip() for piece in part.partition("="))
        if not name or (equals and not stored):
            raise argparse.ArgumentTypeError(f"must be NAME[=SOURCE],..., got {shortened(text)!r}")
        read.append((name, stored or name))
    return tuple(read)


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Parses NAME=SOURCE, separated by commas."""
    if not all("=" in part for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"must be NAME=SOURCE,..., got {shortened(text)!r}")
    return renaming(text)
