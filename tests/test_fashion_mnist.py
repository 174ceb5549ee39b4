"""The benchmark on Fashion-MNIST: its experiment, and the whole evaluation on tiny made-up files."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from starflow_jax.core.config import load_config
from starflow_jax.data import ArraySource
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.training import train

ROOT = Path(__file__).parents[1]
EXPERIMENT = ROOT / "experiments" / "fashion_mnist.py"
sys.path.append(str(ROOT / "experiments" / "benchmarks"))

import denoising  # noqa: E402
import fashion_mnist  # noqa: E402
import linear_bits  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as those of the Debian package, of blocks of random brightness on black."""
    path = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for name, number in (("train", 40), ("t10k", 20)):
        images = np.zeros((number, 28, 28), np.uint8)
        images[:, 6:22, 8:20] = rng.integers(0, 256, (number, 16, 12))
        labels = (np.arange(number) % 10).astype(np.uint8)
        for stem, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (path / f"{name}-{stem}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return path


def test_the_experiment_reads_the_folder_of_the_package_by_default(folder):
    assert load_config(str(EXPERIMENT)).data.path == "/usr/share/datasets/fashion-mnist"
    config = load_config(str(EXPERIMENT), [f"data.path={folder}"])
    source = open_source(config.data, "test", flow=config.flow)
    assert (len(source), source.levels, source.num_classes) == (20, 256, 10)
    assert load_config(f"{EXPERIMENT}:large").flow.patch_size == 2
    assert load_config(f"{EXPERIMENT}:tweedie").sample.denoise == "score"
    assert load_config(f"{EXPERIMENT}:levels").flow.noise_levels == (0.02, 0.5)
    with pytest.raises(ValueError, match="variant must be"):
        load_config(f"{EXPERIMENT}:huge")


def test_digits_are_enlarged_to_the_size_and_the_levels_of_the_images():
    test = ArraySource("test", np.zeros((5, 28, 28, 1), np.uint8), np.arange(5, dtype=np.int32), 17, 5)
    digits = fashion_mnist.resized_digits(test)
    assert digits.images.shape == (5, 28, 28, 1)
    assert digits.images.max() == 16
    assert digits.levels == 17


def test_independent_uniform_pixels_cost_their_levels_and_the_misfit_of_a_normal_density():
    rng = np.random.default_rng(0)
    images, noise = rng.integers(0, 256, (4000, 4, 4, 1), np.uint8), rng.random((4000, 4, 4, 1), np.float32)
    bits = linear_bits.linear_bits(images, noise, None)
    np.testing.assert_allclose(bits["1x1, pixels"], 8 + 0.2546, atol=0.02)
    np.testing.assert_allclose(bits["4x4, cosine"], bits["4x4, pixels"], atol=0.02)


@pytest.mark.slow
def test_every_part_of_the_evaluation_runs(folder, tmp_path, capsys):
    config = load_config(f"{EXPERIMENT}:tiny", [f"data.path={folder}"])
    train(config, tmp_path / "run", progress=False)
    out = tmp_path / "figures.json"
    assert fashion_mnist.main(["--workdir", str(tmp_path / "run"), "--quick", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    bound = figures["likelihood"]["importance_weighted"]
    assert bound["gain"]["mean"] >= 0
    assert {row["name"] for row in figures["ood"]["rows"]} == {"digits", *fashion_mnist.OTHERS}
    assert len(figures["samples"]["rows"]) == 1
    solvers = {row["solver"]: row for row in figures["solvers"]["rows"]}
    assert solvers["sequential"]["depth"] == 2 * 48  # the first of 49 tokens of a block is its noise
    assert all(row["largest_error"] < 1e-2 for row in solvers.values())
    assert "Glow, published" in capsys.readouterr().out


@pytest.mark.slow
def test_two_ways_to_denoise_are_compared(folder, tmp_path):
    noise = ["flow.pixel_map=None", "data.noise=gaussian", f"data.path={folder}"]
    levels = ["flow.noise_levels=(0.1,0.5)", "data.noise_std=0.5", "sample.denoise=iterative"]
    for name, more in (("tweedie", ["data.noise_std=0.1", "sample.denoise=score"]), ("levels", levels)):
        train(load_config(f"{EXPERIMENT}:tiny", [*noise, *more]), tmp_path / name, progress=False)
    out, picture = tmp_path / "figures.json", tmp_path / "samples.png"
    runs = ["--single-level", str(tmp_path / "tweedie"), "--noise-conditioned", str(tmp_path / "levels")]
    assert denoising.main([*runs, "--quick", "--json", str(out), "--picture", str(picture)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["denoise"] for row in rows] == ["none", "score", "none", "score", "iterative", "iterative"]
    assert rows[1]["ratio"] == 1.0 and all(row["fid"]["mean"] > 0 for row in rows)
    assert Image.open(picture).size == (10 * 28, 6 * 28)
