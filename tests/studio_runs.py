"""Tiny runs that a studio opens in tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from random_flows import CLASSES, VIDEO, random_flow
from sweep_runs import params_of, write_arrays, write_run

from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.studio.opened_model import Checkpoints
from starflow_jax.studio.studio_request import StudioRequest

WORDS = ("zero", "one", "two", "left", "right")


def pictures_run(home: Path) -> Checkpoints:
    """A run on pictures of three classes, at two steps, written to the folder `run` of `home`."""
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1))
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", images)), levels=256, label_drop=0.1)
    write_run(home / "run", CLASSES, data, {step: params_of(random_flow(CLASSES, step)) for step in (2, 4)})
    return Checkpoints(StudioRequest(workdir=home / "run"))


def clips_run(home: Path) -> Checkpoints:
    """A run on clips with captions, written to the folder `clips` of `home`."""
    flow = dataclasses.replace(VIDEO, channels=1, text_dim=len(WORDS))
    data = DataConfig(source="moving_digits", frames=3, noise="gaussian", noise_std=0.3)
    write_run(home / "clips", flow, data, {4: params_of(random_flow(flow))}, text=TextConfig(vocabulary=WORDS))
    return Checkpoints(StudioRequest(workdir=home / "clips"))
