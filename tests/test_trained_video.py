"""A trained video flow prefers real clips to damaged ones, and knows the meaning of its words."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import from_json
from starflow_jax.data.sources.moving_digits import DIRECTIONS
from starflow_jax.evaluation.likelihood.video_scores import Clip, score_clips
from starflow_jax.evaluation.video.caption_recognition import ink_centroid, ink_levels
from starflow_jax.evaluation.video.denoiser_ablation import denoiser_ablation
from starflow_jax.sampling import generate
from starflow_jax.training import open_source
from starflow_jax.training.step.inputs import word_encoder

FOLDER = Path(__file__).parent / "trained"


@pytest.fixture(scope="module")
def config():
    return from_json((FOLDER / "moving_digits.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def params():
    tree: dict = {}
    with np.load(FOLDER / "moving_digits.npz", allow_pickle=False) as arrays:
        for path, array in arrays.items():
            *folders, name = path.split("/")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[name] = jnp.asarray(array)
    return tree


@pytest.fixture(scope="module")
def held_out(config):
    """Eight clips of digits that were held out, their captions and text states."""
    source = open_source(config.data, "test", flow=config.flow)
    encoder, captions = word_encoder(config), [source.caption(index) for index in range(8)]
    states = np.asarray(encoder.states(encoder.ids(captions)))
    return np.stack([source[index]["image"] for index in range(8)]), captions, states


@pytest.fixture(scope="module")
def bits(config, params, held_out):
    def score(pixels):
        _, captions, states = held_out
        clips = [Clip(c, c, p, 17, s) for c, p, s in zip(captions, pixels, states, strict=True)]
        found = score_clips(params, config, clips, jax.random.key(0), draws=1, batch_size=8)
        return np.array([clip.bits_per_dim for clip in found])

    return score


def test_real_clips_are_likelier_than_damaged_ones(bits, held_out):
    pixels, _, _ = held_out
    real = bits(pixels)
    shuffled = pixels[:, [3, 0, 6, 1, 7, 2, 5, 4]]
    assert (bits(shuffled) > real + 0.005).all()
    rng = np.random.default_rng(0)
    noisy = np.clip(np.rint(pixels + rng.normal(0, 2, pixels.shape)), 0, 16).astype(np.uint8)
    assert (bits(noisy) > real + 0.1).all()
    # A reversed clip contradicts its caption from the first frame.
    assert bits(pixels[:, ::-1]).mean() > real.mean()


def test_the_learned_denoiser_removes_noise(config, params, held_out):
    pixels, _, states = held_out
    clean = pixels[:4] / 8.0 - 1.0
    key = jax.random.key(1)
    rows = denoiser_ablation(params, config.flow, clean, states[:4], key, noise_std=config.data.noise_std)
    quality = {row.method: row for row in rows}
    assert quality["learned"].psnr > quality["none"].psnr + 6.0
    assert quality["score"].psnr > quality["none"].psnr + 6.0
    assert quality["learned"].ssim > quality["none"].ssim + 0.15


def test_clips_go_where_their_captions_say(config, params):
    """Three frames suffice to detect it."""
    directions = list(DIRECTIONS)
    captions = [f"a three moving {direction}" for direction in directions] * 2
    drawn = generate(params, config, jax.random.key(2), captions, frames=3, batch_size=8)
    moved = ink_centroid(ink_levels(drawn.denoised[:, 2])) - ink_centroid(ink_levels(drawn.denoised[:, 0]))
    along = [float(step @ np.array(DIRECTIONS[c.split()[-1]])) for step, c in zip(moved, captions, strict=True)]
    assert sum(distance > 1.0 for distance in along) >= 6
