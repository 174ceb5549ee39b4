"""The recorded causal video autoencoders, both directions: diffusers folders and the original Wan2.2 layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import relative_error
from safetensors.numpy import load_file

from starflow_jax.models.autoencoders import WanConfig, load_autoencoder, wan22_from_original, wan_to_diffusers
from starflow_jax.models.autoencoders.wan.config import WAN22_MEAN, WAN22_STD
from starflow_jax.models.autoencoders.wan.names import original_name, to_tensors

BAR = 1e-4


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("goldens")
    root = (metafunc.config.rootpath / "tests" / "goldens" if option is None else Path(option)) / "neighbours"
    if "folder" in metafunc.fixturenames:
        found = [
            path.parent
            for path in sorted(root.glob("*/config.json"))
            if json.loads(path.read_text(encoding="utf-8")).get("_class_name") == "AutoencoderKLWan"
        ]
        metafunc.parametrize("folder", found, ids=[path.name for path in found])
    else:
        found = [path.parent for path in sorted(root.glob("*/weights.safetensors"))]
        metafunc.parametrize("original", found, ids=[path.name for path in found])


def channels_last(arrays):
    return {name: np.moveaxis(array, 1, -1) for name, array in arrays.items()}


def test_diffusers_folder(folder):
    arrays = channels_last(load_file(folder / "io.safetensors"))
    autoencoder, params = load_autoencoder(folder)
    mean, log_variance = autoencoder.moments(params, arrays["video"])
    config = autoencoder.config
    normalised = (arrays["z"] - np.asarray(config.latents_mean)) / np.asarray(config.latents_std)
    ours = {
        "latent_mean": mean,
        "latent_logvar": log_variance,
        "decoded": np.clip(autoencoder.decode(params, normalised.astype(np.float32)), -1, 1),
    }
    errors = {name: relative_error(value, arrays[name]) for name, value in ours.items()}
    assert all(error <= BAR for error in errors.values()), errors
    assert set(arrays) - set(ours) == {"video", "z"}, "a recorded array was passed over"


def test_the_way_back_writes_the_same_tensors(folder):
    read = load_file(folder / "diffusion_pytorch_model.safetensors")
    autoencoder, params = load_autoencoder(folder)
    config, written = wan_to_diffusers(autoencoder, params)
    assert set(written) == set(read)
    assert all(np.array_equal(written[name], read[name]) for name in read)
    recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    differing = {name for name, value in config.items() if recorded[name] != value}
    assert differing <= {"decoder_base_dim", "scale_factor_spatial", "scale_factor_temporal"}


@pytest.mark.slow  # test_diffusers_folder reads the same weights
def test_original_layout(original):
    recorded = load_file(original / "io.safetensors")
    scale = {name: tuple(recorded.pop(name).tolist()) for name in ("scale_mean", "scale_std")}
    np.testing.assert_allclose(scale["scale_mean"], WAN22_MEAN, rtol=1e-6)
    np.testing.assert_allclose(scale["scale_std"], WAN22_STD, rtol=1e-6)
    arrays = channels_last(recorded)
    tensors = load_file(original / "weights.safetensors")
    autoencoder, params = wan22_from_original(tensors)
    sizes = json.loads((original / "config.json").read_text(encoding="utf-8"))
    assert autoencoder.config == WanConfig(
        sizes["z_dim"],
        sizes["dim"],
        sizes["dec_dim"],
        tuple(sizes["dim_mult"]),
        sizes["num_res_blocks"],
        tuple(sizes["temporal_downsample"]),
        residual=True,
        patch=2,
        latents_mean=WAN22_MEAN,
        latents_std=WAN22_STD,
    )
    back = to_tensors(autoencoder.config, params, original_name)
    assert set(back) == set(tensors) and all(np.array_equal(back[name], tensors[name]) for name in tensors)
    video, still = arrays["video"], arrays["video"][:, :1]
    ours = {
        "latent_mean": autoencoder.encode(params, video),
        "latent_logvar": autoencoder.moments(params, video)[1],
        "image_latent_mean": autoencoder.encode(params, still[:, 0])[:, None],
        "image_latent_logvar": autoencoder.moments(params, still)[1],
        "decoded_video": autoencoder.decode(params, arrays["z"]),
        "decoded_image": autoencoder.decode(params, arrays["z"][:, 0])[:, None],
    }
    errors = {name: relative_error(value, arrays[name]) for name, value in ours.items()}
    assert all(error <= BAR for error in errors.values()), errors
    assert set(arrays) - set(ours) == {"video", "z"}, "a recorded array was passed over"


SIZES = {
    "wan21": {"base_dim": 4, "z_dim": 3, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1},
    "wan22": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 5,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
    },
}


@pytest.mark.slow
def test_diffusers_itself(original, tmp_path):
    """Where it is installed: random weights written by it, frames and sides that no recording has."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        count = sizes["z_dim"]
        theirs = diffusers.AutoencoderKLWan(**sizes, latents_mean=[0.0] * count, latents_std=[1.0] * count).eval()
        with torch.no_grad():
            for key, parameter in theirs.named_parameters():
                if not key.endswith(".weight"):  # biases and gains start at zero and one
                    parameter.add_(0.1 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path / name)
        autoencoder, params = load_autoencoder(tmp_path / name)
        for frames, rows, columns in ((1, 1, 2), (5, 2, 1), (9, 3, 2), (17, 2, 3)):
            side = autoencoder.stride
            video = torch.rand(1, 3, frames, rows * side, columns * side) * 2 - 1
            with torch.no_grad():
                posterior = theirs.encode(video).latent_dist
                z = torch.randn_like(posterior.mean)
                decoded = theirs.decode(z).sample
            arrays = {"video": video, "mean": posterior.mean, "logvar": posterior.logvar, "z": z, "decoded": decoded}
            arrays = channels_last({key: np.asarray(value) for key, value in arrays.items()})
            mean, log_variance = autoencoder.moments(params, arrays["video"])
            assert relative_error(mean, arrays["mean"]) <= BAR
            assert relative_error(log_variance, arrays["logvar"]) <= BAR
            ours = np.clip(autoencoder.decode(params, arrays["z"]), -1, 1)
            assert relative_error(ours, arrays["decoded"]) <= BAR
