"""Causal video autoencoders: shapes, scaling, causality, tiles, and errors for bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_params

from starflow_jax.models.autoencoders import (
    TiledWan,
    WanAutoencoder,
    WanConfig,
    load_autoencoder,
    save_autoencoder,
    wan22_from_original,
    wan_from_diffusers,
)
from starflow_jax.models.autoencoders.wan.config import WAN22_STD
from starflow_jax.models.autoencoders.wan.names import original_name, to_tensors
from starflow_jax.models.autoencoders.wan.resampling import (
    averaged,
    channels_to_squares,
    duplicated,
    squares_to_channels,
)
from starflow_jax.sharding.rules import partition_spec

SMALL = WanConfig(
    2,
    4,
    4,
    multipliers=(1, 1),
    blocks=1,
    temporal=(True,),
    residual=True,
    patch=2,
    latents_mean=(0.5, -0.5),
    latents_std=(2.0, 4.0),
)


@pytest.fixture(scope="module")
def small():
    autoencoder = WanAutoencoder(SMALL, temporal_scale=0.6)
    return autoencoder, random_params(autoencoder.abstract()[1])


@pytest.fixture(scope="module")
def video():
    return np.asarray(jax.random.uniform(jax.random.key(1), (2, 5, 8, 12, 3), minval=-1))


@pytest.fixture(scope="module")
def latents(small, video):
    return small[0].encode(small[1], video)


@pytest.fixture(scope="module")
def decoded(small, latents):
    return small[0].decode(small[1], latents)


def test_published_sizes():
    wan21 = WanAutoencoder(WanConfig())
    wan22 = WanAutoencoder(
        WanConfig(48, 160, 256, residual=True, patch=2, latents_mean=(0.0,) * 48, latents_std=WAN22_STD)
    )
    assert (wan21.stride, wan21.frame_stride, wan21.channels) == (8, 4, 16)
    assert (wan22.stride, wan22.frame_stride, wan22.channels) == (16, 4, 48)
    for autoencoder, frames in ((wan21, 81), (wan22, 81)):
        params = autoencoder.abstract()[1]
        side = 2 * autoencoder.stride
        video = jax.ShapeDtypeStruct((1, frames, side, 2 * side, 3), jnp.float32)
        latents = jax.eval_shape(autoencoder.encode, params, video)
        assert latents.shape == (1, 21, 2, 4, autoencoder.channels)
        assert jax.eval_shape(autoencoder.decode, params, latents).shape == video.shape
    # The number of parameters that is published with either.
    counts = [sum(leaf.size for leaf in jax.tree.leaves(a.abstract()[1])) for a in (wan21, wan22)]
    assert [round(count / 1e6) for count in counts] == [127, 705]


def test_shapes_of_clips_and_stills(small, video, latents, decoded):
    autoencoder, params = small
    assert latents.shape == (2, 3, 2, 3, 2) and latents.dtype == jnp.float32
    assert decoded.shape == video.shape and decoded.dtype == jnp.float32
    still = jax.eval_shape(autoencoder.encode, params, video[:, 0])
    assert still.shape == (2, 2, 3, 2)
    assert jax.eval_shape(autoencoder.decode, params, still).shape == (2, 8, 12, 3)


def test_latents_are_normalised_and_later_ones_scaled(small, video, latents):
    autoencoder, params = small
    mean, _ = autoencoder.moments(params, video)
    expected = (mean - jnp.asarray(SMALL.latents_mean)) / jnp.asarray(SMALL.latents_std)
    expected = expected * jnp.asarray([1.0, 0.6, 0.6])[:, None, None, None]
    np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-6)


def test_decoding_undoes_the_scaling(small, latents, decoded):
    autoencoder, params = small
    plain = dataclasses.replace(autoencoder, temporal_scale=1.0)
    later = latents / jnp.asarray([1.0, 0.6, 0.6])[:, None, None, None]
    np.testing.assert_allclose(plain.decode(params, later), decoded, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32(small, latents, decoded):
    autoencoder, params = small
    half = dataclasses.replace(autoencoder, dtype="bfloat16")
    pixels = half.decode(params, latents)
    assert pixels.dtype == jnp.float32
    assert 1e-4 < jnp.linalg.norm(pixels - decoded) / jnp.linalg.norm(decoded) < 3e-2


def test_a_frame_sees_none_after_it(small, video, latents, decoded):
    """And every frame before it matters, through all of the convolutions."""
    autoencoder, params = small
    changed = autoencoder.encode(params, np.concatenate([video[:, :3], video[:, 3:] + 0.5], axis=1))
    assert np.array_equal(changed[:, :2], latents[:, :2])
    assert np.abs(changed[:, 2] - latents[:, 2]).min() > 0
    changed = autoencoder.decode(params, latents.at[:, 2].add(1.0))
    assert np.array_equal(changed[:, :3], decoded[:, :3])
    assert np.abs(changed[:, 3:] - decoded[:, 3:]).max() > 1e-3
    changed = autoencoder.decode(params, latents.at[:, 0].add(1.0))
    assert np.abs(changed[:, -1] - decoded[:, -1]).max() > 1e-3


def test_shortcuts_average_what_they_copy():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4, 4))
    larger = duplicated(x, 2, 2, 2, beginning=True)
    assert larger.shape == (1, 5, 4, 8, 2)
    # The last frame of a box is real at the beginning, the others are zeros: its half of the mean.
    back = averaged(larger, 4, 2, 2, beginning=True)
    np.testing.assert_allclose(back[:, 1:], x[:, 1:], rtol=1e-6)
    later = duplicated(x, 2, 2, 2, beginning=False)
    np.testing.assert_allclose(averaged(later, 4, 2, 2, beginning=False), x, rtol=1e-6)
    np.testing.assert_array_equal(later[:, 1:], larger)


def test_squares_of_pixels_come_back():
    x = jnp.arange(2 * 3 * 4 * 6 * 3.0).reshape(2, 3, 4, 6, 3)
    assert squares_to_channels(x, 2).shape == (2, 3, 2, 3, 12)
    np.testing.assert_array_equal(channels_to_squares(squares_to_channels(x, 2), 2), x)
    # Colours are slowest, rows fastest.
    np.testing.assert_array_equal(squares_to_channels(x, 2)[0, 0, 0, 0, :4], x[0, 0, :2, :2, 0].T.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """Sees one position: what tiles can be compared with exactly. Counts frames in its past."""

    stride: int = 2

    def encode_chunk(self, params, pixels, past=None):
        made = pixels[:, :, ::2, ::2] * params["gain"]
        return made, pixels.shape[1] + (jnp.zeros((1,), jnp.int32) if past is None else past)

    def decode_chunk(self, params, latents, past=None):
        made = jnp.repeat(jnp.repeat(latents, 2, axis=2), 2, axis=3) / params["gain"]
        return made, latents.shape[1] + (jnp.zeros((1,), jnp.int32) if past is None else past)


@pytest.mark.parametrize("size, tile, overlap, tiles", [((9, 7), 4, 1, 6), ((9, 7), 4, 2, 12), ((5, 3), 8, 0, 1)])
def test_tiles_of_a_local_map_join_seamlessly(size, tile, overlap, tiles):
    tiled = TiledWan(Pointwise(), tile, overlap)
    latents = jax.random.normal(jax.random.key(0), (2, 3, *size, 2))
    params = {"gain": 3.0}
    pixels, past = tiled.decode_chunk(params, latents)
    np.testing.assert_allclose(pixels, Pointwise().decode_chunk(params, latents)[0], rtol=1e-5, atol=1e-6)
    assert past.shape == (tiles, 1)
    back, past = tiled.encode_chunk(params, pixels, past)
    np.testing.assert_allclose(back, latents, rtol=1e-5, atol=1e-6)
    assert np.array_equal(past, np.full((tiles, 1), 6))


def test_a_folder_comes_back(small, tmp_path):
    autoencoder, params = small
    save_autoencoder(tmp_path / "folder", autoencoder, params)
    again, read = load_autoencoder(tmp_path / "folder", "bfloat16")
    assert again == dataclasses.replace(autoencoder, dtype="bfloat16")
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(params), dict(read)))
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLWan" and config["temporal_scale"] == 0.6


def test_tensors_that_do_not_fit_are_named(small):
    autoencoder, params = small
    tensors = to_tensors(SMALL, params, original_name)
    statistics = {"latents_mean": SMALL.latents_mean, "latents_std": SMALL.latents_std}
    again, read = wan22_from_original(tensors, **statistics, temporal_scale=0.6)
    assert again == autoencoder
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(params), dict(read)))
    with pytest.raises(ValueError, match=r"latents_mean must contain 2 numbers, got 0"):
        wan22_from_original(tensors)
    with pytest.raises(ValueError, match=r"missing decoder\.head\.2\.bias; unexpected head"):
        wan22_from_original(_renamed(tensors, "decoder.head.2.bias", "head"), **statistics)
    with pytest.raises(ValueError, match=r"must contain conv2\.weight"):
        wan22_from_original(_renamed(tensors, "conv2.weight", "conv3.weight"), **statistics)
    with pytest.raises(ValueError, match=r"conv2\.bias has shape \[1\], expected \[2\]"):
        wan22_from_original({**tensors, "conv2.bias": np.zeros(1, np.float32)}, **statistics)
    with pytest.raises(ValueError, match=r"conv2\.bias contains numbers that are not finite"):
        wan22_from_original({**tensors, "conv2.bias": np.full(2, np.nan, np.float32)}, **statistics)
    with pytest.raises(ValueError, match="must contain"):
        wan22_from_original({})


def _renamed(tensors, old, new):
    return {(new if name == old else name): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name must be 'AutoencoderKLWan', got 'AutoencoderKL'"),
        ({"attn_scales": [0.5]}, "attn_scales must be empty"),
        ({"z_dim": 0}, "channels must be an integer >= 1, got 0"),
        ({"z_dim": 5}, "latents_mean must contain 5 numbers, got 0"),
        ({"dim_mult": 4}, "dim_mult must be a list, got 4"),
        ({"dim_mult": [1, 2]}, "temporal must be 1 booleans"),
        ({"in_channels": 12}, "must be the same multiple of patch_size"),
        ({"is_residual": True, "dim_mult": [1, 2, 4, 8]}, "multipliers must let shortcuts turn 384 x 1"),
        ({"latents_std": [0.0] * 16}, "latents_std must be above 0"),
    ],
)
def test_bad_configurations_are_answered(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        wan_from_diffusers(config, {})


def test_bad_arrays_are_answered(small, shapes_unchecked):
    autoencoder, params = small
    for shape, sentence in (
        ((1, 4, 8, 8, 3), "frames of pixels must be 1 plus a multiple of 2, got 4"),
        ((1, 5, 8, 6, 3), "sides that are multiples of 4"),
        ((1, 5, 8, 8, 1), r"pixels must be \[B, T, H, W, 3\]"),
        ((8, 8, 3), r"pixels must be \[B, T, H, W, 3\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            autoencoder.encode(params, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"latents must be \[B, t, h, w, 2\]"):
        autoencoder.decode(params, np.zeros((1, 2, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match="temporal_scale must be above 0"):
        WanAutoencoder(SMALL, temporal_scale=0.0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        WanAutoencoder(SMALL, dtype="float16")
    with pytest.raises(ValueError, match="overlap must be at most half of tile=4, got 3"):
        TiledWan(autoencoder, 4, 3)


def test_large_kernels_are_cut_over_a_mesh():
    paths = jax.tree_util.tree_leaves_with_path(WanAutoencoder(SMALL).abstract()[1])
    cut = {
        "/".join(part.key for part in path): partition_spec("/".join(p.key for p in path), leaf.ndim)
        for path, leaf in paths
    }
    kernels = {path: spec for path, spec in cut.items() if "conv" in path and path.endswith("kernel")}
    assert kernels and all(spec[-1] == "fsdp" for spec in kernels.values())
    assert cut["encoder/middle/attention/project/kernel"] == (None, None)
