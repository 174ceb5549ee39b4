"""The recorded convolutional autoencoders (`NEIGHBOURS/*/config.json` of class AutoencoderKL), both directions."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from recordings import relative_error
from safetensors.numpy import load_file

from starflow_jax.models.autoencoders import load_autoencoder

BAR = 1e-4


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("goldens")
    root = metafunc.config.rootpath / "tests" / "goldens" if option is None else Path(option)
    found = [
        path.parent
        for path in sorted((root / "neighbours").glob("*/config.json"))
        if json.loads(path.read_text(encoding="utf-8")).get("_class_name") == "AutoencoderKL"
    ]
    metafunc.parametrize("folder", found, ids=[path.name for path in found])


def test_recorded_arrays(folder):
    arrays = {name: np.moveaxis(value, 1, -1) for name, value in load_file(folder / "io.safetensors").items()}
    autoencoder, params = load_autoencoder(folder)
    posterior = jax.jit(autoencoder.posterior)(params, arrays["image"])
    checked = {
        "latent_mean": posterior.mean,
        "latent_logvar": posterior.logvar,
        "decoded": jax.jit(autoencoder.decode_raw)(params, arrays["z"]),
    }
    errors = {name: relative_error(value, arrays[name]) for name, value in checked.items()}
    assert all(error <= BAR for error in errors.values()), errors
    assert set(arrays) - set(checked) == {"image", "z"}, "a recorded array was passed over"
