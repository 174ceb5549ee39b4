"""Sweeps over ported models on latents: a model folder's autoencoder and text encoder, and latents computed before."""

import math

import numpy as np
import pytest
from PIL import Image
from sweep_runs import swept
from test_model_folder import EXPERIMENTS, NEIGHBOURS, assembled

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import SourceConfig
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun
from starflow_jax.models.autoencoders import load_autoencoder
from starflow_jax.sweeps import read_examples

pytestmark = pytest.mark.slow


def test_a_ported_model_on_pictures_and_on_their_latents(tmp_path):
    """Encoded inside the program, or before by `starflow encode`: the same latents, text states, noise and bits."""
    experiment = f"{EXPERIMENTS / 'starflow_3b_t2i.py'}:tiny"
    model = assembled(tmp_path, experiment, str(NEIGHBOURS / "sd_vae"), "flow.text_dim=32")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True)
        for place in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{place}.png")
            (folder / f"{place}.txt").write_text(f"picture number {place}")
    pictures = SourceConfig(source="images", path=str(tmp_path / "pictures"))
    argv = ["encode", "--config", experiment, "--split", "test", "--dtype", "float32", "--quiet"]
    argv += ["--autoencoder", str(NEIGHBOURS / "sd_vae"), "--text-encoder", str(NEIGHBOURS / "t5_encoder")]
    argv += ["--config.data.source=images", f"--config.data.path={pictures.path}", "--config.flow.text_dim=32"]
    assert main([*argv, "--out", str(tmp_path / "latents" / "test")]) == 0
    latents = SourceConfig(source="latents", path=str(tmp_path / "latents"))
    sweep = SweepConfig(
        "ported",
        (SweepRun(str(model)),),
        (SweepData("pictures", pictures), SweepData("latents", latents)),
        noise=("trained",),
        conditions=("true", "dropped", "shuffled"),
        draws=2,
        batch_size=4,
    )
    heard = swept(sweep, tmp_path / "sweep")
    assert not heard.failures
    rows = {(row["data"], row["condition"]): row for row in heard.rows.values()}
    assert len(rows) == 6
    for condition in sweep.conditions:
        one, other = rows["pictures", condition], rows["latents", condition]
        assert one["unit"] == other["unit"] == "bits/latent dim" and one["sigma"] == 0.3
        both = [read_examples(tmp_path / "sweep", row["cell"])["log_prob"] for row in (one, other)]
        np.testing.assert_allclose(*both, rtol=1e-5)
        # Raw latents are larger by 1 / scaling_factor, and their density is smaller.
        scaling = load_autoencoder(NEIGHBOURS / "sd_vae")[0].scaling_factor
        for row in (one, other):
            assert row["raw_bits_per_dim"] == pytest.approx(row["bits_per_dim"] - math.log2(scaling))
