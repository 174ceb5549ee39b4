"""The convolutional autoencoder: scaling, draws, tiles, precision, files both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from random_parameters import random_params
from safetensors.numpy import load_file, save_file

from starflow_jax.models.autoencoders import (
    Tiled,
    decode_latents,
    decoding,
    fit_patch_pca,
    has_autoencoder,
    keep_autoencoder,
    latent_shape,
    load_autoencoder,
    save_autoencoder,
)
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL, Posterior
from starflow_jax.sharding.rules import partition_spec

RECORDED = Path(__file__).parent / "goldens" / "neighbours" / "sd_vae"
TENSORS = "diffusion_pytorch_model.safetensors"
leaves = jax.tree_util.tree_leaves_with_path


@pytest.fixture(scope="module")
def small():
    """An autoencoder with every part, and its parameters: a new one, whose latents are moved away from zero."""
    autoencoder = AutoencoderKL((4, 8), 1, 2, 3, 4, scaling_factor=0.5)
    params = dict(random_params(autoencoder.abstract()[1]))
    params["quant_conv"] = params["quant_conv"] | {"bias": jnp.arange(4.0)}
    return autoencoder, params


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def latents(small, pixels):
    autoencoder, params = small
    return np.asarray(jax.jit(autoencoder.encode)(params, pixels))


@pytest.fixture(scope="module")
def decoded(small, latents):
    autoencoder, params = small
    return np.asarray(jax.jit(autoencoder.decode)(params, latents))


def test_latents_are_shifted_and_scaled_and_decoding_undoes_it(small, pixels, latents, decoded):
    autoencoder, params = small
    assert latents.shape == (3, 4, 6, 2) == (3, *latent_shape(autoencoder, pixels.shape[1:]))
    assert decoded.shape == pixels.shape and decoded.dtype == latents.dtype == np.float32
    other = dataclasses.replace(autoencoder, scaling_factor=0.25, shift_factor=0.75)
    mean = autoencoder.raw(latents)
    np.testing.assert_allclose(jax.jit(other.encode)(params, pixels), (mean - 0.75) * 0.25, atol=1e-5)
    # of clips every frame by itself
    found = jax.jit(other.decode)(params, other.scaled(mean)[None])
    np.testing.assert_allclose(found[0], decoded, atol=1e-5)


def test_draws_of_the_posterior_have_its_moments_and_the_divergence_is_that_of_normals():
    posterior = Posterior(jnp.full((1, 1, 1, 2), 0.5), jnp.log(jnp.asarray([[[[0.25, 4.0]]]])))
    draws = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(draws.mean(0), posterior.mean, atol=0.05)
    np.testing.assert_allclose(draws.var(0), jnp.exp(posterior.logvar), rtol=0.05)
    # E_q[log q - log p], from the same draws
    log_q = -0.5 * ((draws - posterior.mean) ** 2 / jnp.exp(posterior.logvar) + posterior.logvar)
    estimate = (log_q + 0.5 * draws**2).sum((-3, -2, -1)).mean()
    np.testing.assert_allclose(posterior.kl(), [estimate], rtol=0.05)


def test_bfloat16_is_close_and_float32_where_it_matters(small, pixels, latents):
    autoencoder, params = small
    found = jax.jit(dataclasses.replace(autoencoder, dtype="bfloat16").encode)(params, pixels)
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - latents) / np.linalg.norm(latents)
    assert 1e-4 < error < 0.1  # 8 bits of mantissa: it is another computation, and near


def test_tiles_of_a_map_of_patches_are_the_whole():
    linear, params = fit_patch_pca([np.random.default_rng(0).uniform(-1, 1, (64, 64, 3))], 2, 12)
    tiled = Tiled(linear, 8, 3)
    for shape in ((2, 40, 28, 3), (1, 2, 18, 12, 3)):  # both sides cut, one side cut, of a clip
        x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        latents = tiled.encode(params, x)
        np.testing.assert_allclose(latents, linear.encode(params, x), atol=1e-5)
        np.testing.assert_allclose(tiled.decode(params, latents), x, atol=1e-5)


def test_tiles_of_a_network_with_norms_are_close(small):
    autoencoder, params = small
    x = np.random.default_rng(1).uniform(-1, 1, (1, 24, 16, 3)).astype(np.float32)
    whole = np.asarray(jax.jit(autoencoder.encode)(params, x))
    parts = np.asarray(jax.jit(Tiled(autoencoder, 8, 4).encode)(params, x))
    spread = whole - whole.mean((0, 1, 2))  # without what the bias says everywhere
    assert 1e-4 < np.linalg.norm(parts - whole) / np.linalg.norm(spread) < 0.5


@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (8, 5), (8, -1)])
def test_tiles_that_cannot_be(tile, overlap):
    with pytest.raises(ValueError, match=r"^(tile|overlap) must be"):
        Tiled(AutoencoderKL((4,), 1, 2, 3, 4), tile, overlap)


def test_what_is_written_is_the_file_that_was_read(tmp_path):
    autoencoder, params = load_autoencoder(RECORDED)
    save_autoencoder(tmp_path / "a", autoencoder, params)
    theirs, ours = (load_file(folder / TENSORS) for folder in (RECORDED, tmp_path / "a"))
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    config = json.loads((RECORDED / "config.json").read_text())
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert {name: config[name] for name in written} == written
    assert load_autoencoder(tmp_path / "a")[0] == autoencoder
    with pytest.raises(OSError):  # a folder that holds something is left alone
        save_autoencoder(tmp_path / "a", autoencoder, params)


def test_shards_half_precision_and_old_names(tmp_path):
    loaded = load_autoencoder(RECORDED)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(RECORDED / TENSORS).items():
        for new, before in old.items():
            if f".{new}." in name and value.ndim == 2:
                value = value[..., None, None]  # as convolutions, as in the oldest files
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = value.astype(ml_dtypes.bfloat16)
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / f"{TENSORS}.index.json").write_text(json.dumps(index))
    shutil.copy(RECORDED / "config.json", tmp_path)
    autoencoder, params = load_autoencoder(tmp_path)
    assert autoencoder == loaded[0]
    for (path, a), b in zip(leaves(params), jax.tree.leaves(loaded[1]), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16).astype(np.float32), err_msg=str(path))
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / f"{TENSORS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not a file name in its folder"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            r"_class_name of .* must be one of 'AutoencoderKL', .*, got 'AutoencoderTiny'",
        ),
        ({"_class_name": None}, "_class_name of autoencoder"),
        ({"act_fn": "relu"}, "act_fn must be 'silu'"),
        ({"block_out_channels": 8}, "block_out_channels must be a list of widths, got 8"),
        ({"block_out_channels": [8, 16, 16, 15]}, "norm_num_groups=8 must divide block_out_channels"),
        ({"latent_channels": 8}, r"tensors must have the shapes of the configuration, got decoder.conv_in.weight \["),
        ({"layers_per_block": 3}, "tensors must contain decoder.up_blocks.0.resnets.3.* more, and do not"),
        ({"use_quant_conv": False}, "got additionally quant_conv.bias, quant_conv.weight"),
        ({"use_quant_conv": 3}, "use_quant_conv must be true or false, got 3"),
        ({"scaling_factor": -1.0}, "scaling_factor must be above 0"),
        ({"latents_mean": [0.0] * 4}, "latents_mean must be None"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, config, sentence):
    shutil.copy(RECORDED / TENSORS, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((RECORDED / "config.json").read_text()) | config))
    with pytest.raises(ValueError, match=sentence) as refused:
        load_autoencoder(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    def refused(sentence):
        with pytest.raises(ValueError, match=sentence):
            load_autoencoder(tmp_path)

    refused("must be a folder with config.json")
    (tmp_path / "config.json").write_text("[]")
    refused("must contain a JSON object")
    shutil.copy(RECORDED / "config.json", tmp_path)
    refused("does not exist")
    whole = (RECORDED / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[:-4])
    refused(TENSORS)
    tensors = load_file(RECORDED / TENSORS)
    save_file(tensors | {"quant_conv.bias": np.full(8, np.nan, np.float32)}, tmp_path / TENSORS)
    refused("tensors must contain finite numbers, and quant_conv.bias do not")
    save_file(tensors | {"quant_conv.bias": np.zeros(8, np.int32)}, tmp_path / TENSORS)
    refused("quant_conv.bias must be floating point, got int32")


def test_it_has_the_parameters_of_the_released_one():
    abstract = AutoencoderKL((128, 256, 512, 512)).abstract()[1]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)) == 83_653_863


def test_the_table_of_rules_cuts_output_channels():
    assert partition_spec("encoder/down_blocks/0/resnets/0/conv1/kernel", 4) == (None, None, None, "fsdp")
    assert partition_spec("encoder/mid_block/attentions/0/to_q/kernel", 2) == (None, "fsdp")
    assert partition_spec("decoder/conv_norm_out/scale", 1) == partition_spec("decoder/conv_out/bias", 1) == (None,)


def test_latents_are_decoded_by_what_is_kept_beside_them(small, latents, decoded, tmp_path, monkeypatch):
    autoencoder, params = small
    (tmp_path / "train").mkdir()
    assert not has_autoencoder(tmp_path)
    assert keep_autoencoder(tmp_path / "train", autoencoder, params) == tmp_path / "train" / "autoencoder"
    assert has_autoencoder(tmp_path)
    monkeypatch.setattr(decoding, "_PIXELS", 2 * 8 * 12)  # two at a time, the last one alone
    np.testing.assert_allclose(decode_latents(latents, tmp_path), decoded, atol=1e-5)
    np.testing.assert_allclose(decode_latents(latents[0], tmp_path), decoded[0], atol=1e-5)
    with pytest.raises(ValueError, match="must decode latents of 3 channels, got 2"):
        decode_latents(np.zeros((1, 4, 6, 3), np.float32), tmp_path)


def test_diffusers_decodes_what_is_written_here_alike(small, tmp_path, latents, decoded):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    autoencoder, params = small
    save_autoencoder(tmp_path / "a", autoencoder, params)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        z = torch.from_numpy(np.moveaxis(np.asarray(autoencoder.raw(latents)), -1, 1).copy())
        found = np.moveaxis(theirs.decode(z).sample.numpy(), 1, -1)
    assert np.linalg.norm(found - decoded) < 1e-4 * np.linalg.norm(decoded)
