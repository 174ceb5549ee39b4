"""Lossless file sizes: a flow's own codec against PNG, WebP, JPEG XL, zlib, lzma and bz2 on the images of its data.

    python experiments/benchmarks/lossless.py --workdir runs/digits --json lossless.json
    python experiments/benchmarks/lossless.py --workdir runs/moving --images 20 --parts sizes
    python experiments/benchmarks/lossless.py --workdir runs/digits --parts arithmetic,resolution

`sizes` compresses held-out images of the run's data into one file with `sf.compress`, and by each baseline both as one
file an image and all in one: one large picture, or the bytes of all pixels. "model" is the mean of `sf.bits_per_dim`
under uniform dequantisation, with the cost of the classes that a file stores. `resolution` repeats the coding on
coarser and finer grids. `arithmetic` compares what the decoder's programs compute with other numbers of threads, other
sizes of a batch and other flags of the compiler, each in a process of its own, with this process.

JPEG XL needs `pip install imagecodecs`. What the table does not show: a baseline needs no model, and a flow has been
trained for these data; the size of the model and the number of training images are printed beside it.
"""

from __future__ import annotations

import argparse
import bz2
import io
import lzma
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import starflow_jax as sf
from starflow_jax.compression.environment import probe
from starflow_jax.compression.file_format import read_file
from starflow_jax.compression.flow_coder import FlowCoder, Resolution
from starflow_jax.compression.image_codec import Decoder, check_model
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.flows.parameters import count
from starflow_jax.media import image_grid
from starflow_jax.training.step.inputs import open_source

PARTS = ("sizes", "resolution", "arithmetic")
RESOLUTIONS = ((0, 4), (1, 5), (2, 5), (2, 6), (3, 7), (4, 8), (6, 10), (8, 12))
# Environments of another process, and the rows of its programs.
VARIANTS: tuple[tuple[str, dict[str, str], str, int | None], ...] = (
    ("the same again", {}, "", None),
    ("one core", {}, "taskset -c 0", None),
    ("no threads in matrix products", {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}, "", None),
    ("unoptimised programs", {"XLA_FLAGS": "--xla_backend_optimization_level=0"}, "", None),
    ("vector instructions of 256 bits (AVX2)", {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}, "", None),
    ("vector instructions of 128 bits (SSE4.2)", {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}, "", None),
    ("a batch of 1", {}, "", 1),
    ("a batch of 32", {}, "", 32),
)


def baselines(images: np.ndarray) -> dict[str, dict[str, int]]:
    """Bytes of every baseline by form: "each", one file an image, and "all", one for all images.

    Args:
      images: uint8 [n, H, W, C] or [n, T, H, W, C]; the frames of a clip are put side by side.
    """
    if images.ndim == 5:
        clips, frames, height, width, channels = images.shape
        images = images.transpose(0, 2, 1, 3, 4).reshape(clips, height, frames * width, channels)
    raw = {"zlib": lambda b: zlib.compress(b, 9), "lzma": _lzma, "bz2": lambda b: bz2.compress(b, 9)}
    pictures: dict[str, Callable[[np.ndarray], bytes]] = {
        "PNG": lambda a: _pillow(a, format="PNG", optimize=True),
        "WebP lossless": lambda a: _pillow(a, format="WEBP", lossless=True, quality=100, method=6, exact=True),
    }
    try:
        import imagecodecs
    except ImportError:
        pass
    else:
        pictures["JPEG XL lossless"] = lambda a: imagecodecs.jpegxl_encode(
            np.ascontiguousarray(a if a.shape[-1] > 1 else a[..., 0]), lossless=True, effort=9
        )
    sizes = {}
    for name, encode in raw.items():
        each = sum(len(encode(image.tobytes())) for image in images)
        sizes[name] = {"each": each, "all": len(encode(images.tobytes()))}
    grid = image_grid(images)
    for name, draw in pictures.items():
        sizes[name] = {"each": sum(len(draw(image)) for image in images), "all": len(draw(grid))}
    return sizes


def _lzma(data: bytes) -> bytes:
    """The raw stream, without the 60 bytes of the container."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)


def _pillow(image: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image if image.shape[-1] > 1 else image[..., 0]).save(out, **options)
    return out.getvalue()


def measure_sizes(run: sf.Run, images: np.ndarray, cond: Any, draws: int) -> dict[str, Any]:
    """The codec and all baselines, in bits/dim."""
    begin = time.perf_counter()
    data = sf.compress(run, images, cond)
    written = time.perf_counter()
    decoder = Decoder(run, data)
    assert (decoder.all() == images).all()
    read, dims = time.perf_counter(), images.size
    header, stream = read_file(data)
    labels = decoder.labels
    given = labels if labels is not None else None if isinstance(cond, str) else cond
    own = float(sf.bits_per_dim(run, images, given, levels=header.levels, draws=draws).mean())
    if labels is not None:
        own += np.log2(run.config.flow.num_classes) / images[0].size
    rows = [{"codec": "starflow compress", "form": "all", "bytes": len(data), "bits_per_dim": 8 * len(data) / dims}]
    for name, sizes in baselines(images).items():
        for form, size in sizes.items():
            rows.append({"codec": name, "form": form, "bytes": size, "bits_per_dim": 8 * size / dims})
    best = min(row["bytes"] for row in rows[1:])  # type: ignore[type-var]
    print(f"\n{len(images)} images of {images[0].size} values, {header.levels} levels")
    table = [
        [
            row["codec"],
            row["form"],
            f"{row['bytes']:,}",
            f"{row['bits_per_dim']:.4f}",
            f"{row['bytes'] / len(data):.3f}",
        ]
        for row in rows
    ]
    print(text_table([["codec", "files", "bytes", "bits/dim", "times the flow's"], *table]))
    over = 8 * len(stream) / dims / own - 1
    print(
        f"model {own:.4f} bits/dim; stream {8 * len(stream) / dims:.4f} ({over:+.2%}), header "
        f"{len(data) - len(stream)} bytes; best baseline / flow {best / len(data):.3f}; "
        f"{count(run.params):,} parameters"
    )
    return {
        "images": len(images),
        "levels": header.levels,
        "values": dims,
        "model_bits_per_dim": own,
        "stream_bits_per_dim": 8 * len(stream) / dims,
        "overhead": over,
        "header_bytes": len(data) - len(stream),
        "best_baseline_ratio": best / len(data),
        "parameters": count(run.params),
        "encode_and_check_seconds": written - begin,
        "decode_seconds": read - written,
        "rows": rows,
    }


def measure_resolutions(run: sf.Run, images: np.ndarray, cond: Any) -> list[dict[str, Any]]:
    """Bits/dim of the stream on grids of several resolutions."""
    results = []
    for pixel_bits, token_bits in RESOLUTIONS:
        data = sf.compress(run, images, cond, resolution=Resolution(pixel_bits, token_bits))
        _, stream = read_file(data)
        bits = 8 * len(stream) / images.size
        results.append({"pixel_bits": pixel_bits, "token_bits": token_bits, "stream_bits_per_dim": bits})
        print(f"pixels 2^{pixel_bits}, tokens 2^-{token_bits}: {bits:.4f} bits/dim")
    return results


def print_probe(run: sf.Run, rows: int) -> None:
    """Prints the digest of what the decoder's programs compute."""
    config, levels = run.config.flow, check_model(run)
    coder = FlowCoder(config, run.params, levels, run.config.data.frames or None, rows, Resolution(4, 8))
    cond = np.zeros(1, np.int32) if config.num_classes else None
    if config.text_dim:
        cond = np.zeros((1, config.text_length, config.text_dim), np.float32)
    print(f"probe {probe(coder, cond).hex()}")


def measure_arithmetic(workdir: Path, rows: int) -> list[dict[str, Any]]:
    """Whether the programs compute the same bits in other processes.

    Raises:
      RuntimeError: a process failed.
    """
    results: list[dict[str, Any]] = []
    for name, environment, prefix, other_rows in VARIANTS:
        if prefix and shutil.which(prefix.split()[0]) is None:
            print(f"{name}: left out, since there is no {prefix.split()[0]} here")
            continue
        command = [*prefix.split(), sys.executable, __file__, "--workdir", str(workdir), "--parts", "probe"]
        command += ["--rows", str(other_rows or rows)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        digests = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("probe ")]
        if done.returncode or not digests:
            raise RuntimeError(f"{name}: the process ended with {done.returncode}: {done.stderr[-2000:]}")
        results.append({"what": name, "probe": digests[0]})
        results[-1]["same"] = results[-1]["probe"] == results[0]["probe"]
        print(f"{name}: {results[-1]['probe']} {'same bits' if results[-1]['same'] else 'OTHER BITS'}")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; returns an exit code."""
    shown = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown.add_argument("--workdir", type=Path, required=True, help="folder of a run")
    shown.add_argument("--images", type=int, help="held-out images or clips (default: all)")
    shown.add_argument(
        "--draws", type=int, default=4, help="draws of the noise for the model's own bits/dim (default 4)"
    )
    shown.add_argument("--parts", default="sizes", help=f"of {', '.join(PARTS)} (default sizes)")
    shown.add_argument("--rows", type=int, default=64, help="rows of the probed programs (default 64)")
    shown.add_argument("--json", type=Path, help="also write the figures as JSON")
    options = shown.parse_args(arguments)
    parts = options.parts.split(",")
    for part in parts:
        if part not in PARTS and parts != ["probe"]:
            shown.error(f"--parts must be of {', '.join(PARTS)}, got {part!r}")
    for name, value in (("--images", options.images), ("--draws", options.draws), ("--rows", options.rows)):
        if value is not None and value < 1:
            shown.error(f"{name} must be at least 1, got {value}")
    run = sf.from_pretrained(options.workdir)
    if parts == ["probe"]:
        print_probe(run, options.rows)
        return 0
    source = open_source(run.config.data, "test", flow=run.config.flow, text=run.config.text)
    examples = [source[index] for index in range(min(len(source), options.images or len(source)))]
    images = np.stack([example["image"] for example in examples])
    figures: dict[str, Any] = {
        "workdir": str(options.workdir),
        "step": run.step,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
    if "sizes" in parts:
        figures["sizes"] = measure_sizes(run, images, "auto", options.draws)
    if "resolution" in parts:
        figures["resolution"] = measure_resolutions(run, images, "auto")
    if "arithmetic" in parts:
        figures["arithmetic"] = measure_arithmetic(options.workdir, options.rows)
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
