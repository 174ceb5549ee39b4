"""Bits/dim of one linear autoregression over tokens, for candidate pixel maps: computed from a covariance, not trained.

    python experiments/benchmarks/linear_bits.py --data /usr/share/datasets/fashion-mnist --json linear.json
    python experiments/benchmarks/linear_bits.py --quick        # random pictures: shows that everything runs

A block that predicts every token linearly from the earlier ones, with channels that are independent given these and
normal, is the Cholesky factorisation of the covariance of the tokens. Its bits/dim tell, in seconds, which map of the
pixels (`flow.pixel_map`) and which tokens suit a data set before a flow is trained. The baseline of a row is the linear
autoregression of the same tokens without a map. The pictures are training pictures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.data import ArraySource, dequantise
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.flows.order import patchify
from starflow_jax.flows.pixel_map import map_pixels, token_basis

# Standard deviations of black, in ordinary cells; None for no map.
WIDTHS: tuple[float | None, ...] = (None, 2.0, 8.0, 20.0, 40.0)
# Rows and columns of a token, and the basis of its channels.
TOKENS = ((1, "pixels"), (2, "pixels"), (2, "cosine"), (4, "pixels"), (4, "cosine"))


def linear_bits(images: np.ndarray, noise: np.ndarray, cells: tuple[tuple[int, float], ...] | None) -> dict[str, float]:
    """Bits/dim by kind of token, of pictures uint8 [n, H, W, C] and uniform noise of that shape."""
    x, slope = jnp.asarray(dequantise(images, noise, 256)), np.zeros(())
    if cells is not None:
        x, slope = map_pixels(PixelMapConfig(normal_cells=cells), x)
    dims, bits = images[0].size, {}
    offset = 0.5 * math.log(2.0 * math.pi * math.e) + math.log(256 / 2.0) - float(np.mean(slope))
    for size, basis in TOKENS:
        if any(side % size for side in images.shape[1:3]):
            continue
        tokens = np.asarray(patchify(x, size, "tarflow"), np.float64)
        matrix = token_basis(PixelMapConfig(basis=basis), images.shape[3], size, "tarflow")  # type: ignore[arg-type]
        if matrix is not None:
            tokens = tokens @ matrix
        flat, channels = tokens.reshape(len(tokens), -1), tokens.shape[-1]
        factor = np.linalg.cholesky(np.cov(flat.T) + 1e-9 * np.eye(dims))
        # Given the earlier tokens, the covariance of a token is B B^T, with B its block on the diagonal.
        blocks = [factor[i : i + channels, i : i + channels] for i in range(0, dims, channels)]
        nats = sum(0.5 * np.log((block**2).sum(axis=1)).sum() for block in blocks)
        bits[f"{size}x{size}, {basis}"] = float((nats / dims + offset) / math.log(2.0))
    return bits


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the computation; returns an exit code."""
    shown = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="IDX files")
    shown.add_argument("--images", type=int, default=20_000, help="training pictures (default 20000)")
    shown.add_argument("--seed", type=int, default=0, help="of the dequantisation noise (default 0)")
    shown.add_argument("--json", type=Path, help="also write the figures as JSON")
    shown.add_argument("--quick", action="store_true", help="random pictures of 8x8 pixels")
    options = shown.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    if options.quick:
        images = np.where(rng.random((400, 8, 8, 1)) < 0.5, 0, rng.integers(0, 256, (400, 8, 8, 1))).astype(np.uint8)
    else:
        source = open_source(DataConfig(source="idx", path=str(options.data)), "train")
        assert isinstance(source, ArraySource)
        images = source.images[: options.images]
    noise = rng.random(images.shape, np.float32)
    candidates: list[tuple[str, Any]] = [
        ("no map" if width is None else f"black {width:g}", None if width is None else ((0, width),))
        for width in WIDTHS
    ]
    candidates.append(("black 20, white 3", ((0, 20.0), (255, 3.0))))
    candidates.append(("black 20, level 1 2", ((0, 20.0), (1, 2.0))))
    rows = {name: linear_bits(images, noise, cells) for name, cells in candidates}
    kinds = list(rows["no map"])
    table = [("bits/dim", *kinds, "4x4 cosine against no map" if "4x4, cosine" in kinds else "")]
    for name, bits in rows.items():
        ratio = bits[kinds[-1]] / rows["no map"][kinds[-1]]
        table.append((name, *(f"{bits[kind]:.3f}" for kind in kinds), f"{ratio:.2f}x"))
    print(text_table(table))
    if options.json is not None:
        write_json(options.json, {"images": len(images), "seed": options.seed, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
