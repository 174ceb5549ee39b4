"""Memory and time of encoding and decoding a long video chunk by chunk.

    python experiments/benchmarks/video_autoencoder.py --json coding.json
    python experiments/benchmarks/video_autoencoder.py --quick                # a short video, seconds

A Wan autoencoder with random weights and small width encodes and decodes the same video at once ("whole", the baseline)
and in chunks of 1 and 4 latent frames. Each run is a separate process (on Linux). The table has the growth of its peak
resident memory over that before the measurement (parameters, input, programs), the temporary arrays and results
of the program of later chunks as reported by the compiler, the seconds of a second pass, and the difference from the
result of the baseline.

Expected: the memory of coding in chunks does not depend on the number of frames.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.models.autoencoders import WanAutoencoder, WanConfig
from starflow_jax.models.autoencoders.wan.streaming import (
    decode_first,
    decode_next,
    decode_stream,
    encode_first,
    encode_next,
    encode_stream,
)

WAYS = ("whole", "chunks of 1", "chunks of 4")


def make_autoencoder(kind: str, width: int) -> WanAutoencoder:
    """The published architecture with a small width."""
    if kind == "wan21":
        return WanAutoencoder(WanConfig(width=width, decoder_width=width))
    zeros, ones = (0.0,) * 48, (1.0,) * 48
    return WanAutoencoder(
        WanConfig(48, width, width, residual=True, patch=2, latents_mean=zeros, latents_std=ones), temporal_scale=0.6
    )


def frames_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the frames of a video."""
    return (array[:, index] for index in range(array.shape[1]))


class Coding:
    """Encoding or decoding with one chunk size in this process; its programs are compiled.

    Attributes:
      compiled_bytes: temporary arrays and results of the program of later chunks, as reported by the compiler.
    """

    def __init__(self, options: argparse.Namespace):
        autoencoder = make_autoencoder(options.kind, options.width)
        self.params = jax.device_put(jax.tree.map(np.asarray, autoencoder.init(jax.random.key(0))))
        self.given = video(autoencoder, options)
        chunk = 4 if options.way.endswith("4") else 1
        if options.direction == "encode":
            code, stream, first, later = autoencoder.encode, encode_stream, encode_first, encode_next
            sizes = (1 + autoencoder.frame_stride * (chunk - 1), autoencoder.frame_stride * chunk)
        else:
            code, stream, first, later = autoencoder.decode, decode_stream, decode_first, decode_next
            sizes = (chunk, chunk)
        self.pieces: Callable[[np.ndarray], Iterator[jax.Array]]
        if options.way == "whole":
            program = jax.jit(code).lower(self.params, self.given).compile()
            self.pieces = lambda given: iter([program(self.params, given)])
            self.compiled_bytes = _bytes(program)
            return
        self.pieces = lambda given: stream(autoencoder, self.params, frames_of(given), chunk=chunk)
        for _ in self.pieces(self.given[:, : sum(sizes)]):
            pass  # this compiles both programs
        past = jax.eval_shape(lambda p, x: first(autoencoder, p, x)[1], self.params, self.given[:, : sizes[0]])
        # The program of later chunks reads a cache and, for encoding, has more frames.
        self.compiled_bytes = _bytes(later.lower(autoencoder, self.params, self.given[:, : sizes[1]], past).compile())

    def __call__(self, keep: Callable[[np.ndarray], None]) -> None:
        """Processes the whole video and passes every chunk of the result to `keep`."""
        for piece in self.pieces(self.given):
            keep(np.asarray(piece))


def video(autoencoder: WanAutoencoder, options: argparse.Namespace) -> np.ndarray:
    """Random pixels or latents."""
    rng, side = np.random.default_rng(0), autoencoder.stride
    rows, columns = options.size
    if options.direction == "encode":
        return rng.uniform(-1, 1, (1, options.frames, rows, columns, 3)).astype(np.float32)
    frames = 1 + (options.frames - 1) // autoencoder.frame_stride
    return rng.standard_normal((1, frames, rows // side, columns // side, autoencoder.channels)).astype(np.float32)


def _bytes(program: Any) -> int:
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def resident(name: str) -> int:
    """Resident memory in bytes as reported by Linux: current ("VmRSS"), or peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The measurement of one process."""
    coding = Coding(options)
    # Returns the memory of the compiler to the system, and resets the peak.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    # Only a few values of every frame of the result are kept, so that the result does not affect the memory.
    values: list[np.ndarray] = []
    coding(lambda piece: values.append(piece[:, :, ::7, ::7].copy()))
    growth = resident("VmHWM") - before
    start = time.perf_counter()
    coding(lambda piece: None)
    seconds = time.perf_counter() - start
    np.save(options.result, np.concatenate(values, axis=1))
    return {"rss_growth_bytes": growth, "compiled_bytes": coding.compiled_bytes, "seconds": seconds}


def measure(options: argparse.Namespace, direction: str) -> list[dict[str, Any]]:
    """All measurements of one direction."""
    rows, baseline = [], np.zeros(0)
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.npy"
            command = [sys.executable, __file__, "--way", way, "--direction", direction, "--result", str(result)]
            command += ["--kind", options.kind, "--width", str(options.width), "--frames", str(options.frames)]
            command += ["--size", *map(str, options.size)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            values = np.load(result)
        row = json.loads(printed.splitlines()[-1])
        baseline = values if way == "whole" else baseline
        row["difference"] = float(np.linalg.norm(values - baseline) / np.linalg.norm(baseline))
        first_row = rows[0] if rows else row
        row["of_whole_rss"] = row["rss_growth_bytes"] / first_row["rss_growth_bytes"]
        row["of_whole_compiled"] = row["compiled_bytes"] / first_row["compiled_bytes"]
        row["of_whole_seconds"] = row["seconds"] / first_row["seconds"]
        rows.append({"direction": direction, "way": way, **row})
        print(f"{direction}, {way}: {row['rss_growth_bytes'] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("wan21", "wan22"), default="wan21")
    parser.add_argument("--width", type=int, default=16, help="width of the layers next to the pixels (default 16)")
    parser.add_argument("--frames", type=int, default=481, help="1 + 4 k (default 481)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 96), metavar=("H", "W"))
    parser.add_argument("--quick", action="store_true", help="17 frames of 32 x 32, width 8")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--direction", choices=("decode", "encode"), help="one direction only (default: both)")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(run(options)))
        return 0
    if options.quick:
        options.frames, options.size, options.width = 17, (32, 32), 8
    directions = ("decode", "encode") if options.direction is None else (options.direction,)
    measurements = [row for direction in directions for row in measure(options, direction)]
    rows = [
        (
            row["direction"],
            row["way"],
            f"{row['rss_growth_bytes'] / 2**20:.0f}",
            f"{row['of_whole_rss']:.3f}",
            f"{row['compiled_bytes'] / 2**20:.1f}",
            f"{row['of_whole_compiled']:.3f}",
            f"{row['seconds']:.2f}",
            f"{row['of_whole_seconds']:.2f}",
            f"{row['difference']:.1e}",
        )
        for row in measurements
    ]
    header = ("", "way", "peak growth MiB", "of whole", "compiled MiB", "of whole", "s", "of whole", "difference")
    print(f"{options.kind}, width {options.width}, {options.frames} frames of {options.size[0]} x {options.size[1]}")
    print(text_table([header, *rows]))
    if options.json:
        settings = {name: getattr(options, name) for name in ("kind", "width", "frames")}
        write_json(options.json, {**settings, "size": list(options.size), "rows": measurements})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
