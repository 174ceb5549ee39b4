"""TARFlow on Fashion-MNIST: 28x28 grey pictures of ten kinds of clothes, 60,000 for training and 10,000 held out.

    apt-get install dataset-fashion-mnist
    starflow train --config experiments/fashion_mnist.py --workdir runs/fashion
    python experiments/benchmarks/fashion_mnist.py --workdir runs/fashion --json fashion.json
    starflow plan --config experiments/fashion_mnist.py:large --topology h100:1
    starflow train --config experiments/fashion_mnist.py:tiny --workdir runs/tiny --config.data.path=FOLDER

The files of the Debian package are read from /usr/share/datasets/fashion-mnist; `--config.data.path` names another
folder of IDX files.

Half of all pixels are exactly black. `flow.pixel_map` widens the cells of black and of white and gives their
dequantisation noise the shape of a normal density, and describes a token of 4x4 pixels by its cosine transform, whose
channels are nearly uncorrelated. `docs/fashion_mnist.md` has the reasons, the trials and the results.

The variant "large" is planned for an accelerator and has not been trained. "tweedie" and "levels" compare two ways to
sample: noise of one level, removed by one step of Tweedie's formula, and a noise-conditioned flow with iterative
denoising (`docs/how_to/noise_levels.md`), both without a pixel map:

    starflow train --config experiments/fashion_mnist.py:tweedie --workdir runs/tweedie
    starflow train --config experiments/fashion_mnist.py:levels --workdir runs/levels
    python experiments/benchmarks/denoising.py --single-level runs/tweedie --noise-conditioned runs/levels
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Args:
      variant: "" for two CPU cores, "large" for an accelerator, "tweedie" and "levels" for samples, "tiny" for tests.

    Raises:
      ValueError: an unknown variant.
    """
    config = ConfigDict(
        {
            "name": "fashion-mnist",
            "flow": {
                "family": "tarflow",
                "channels": 1,
                "image_size": 28,
                "patch_size": 4,
                "width": 128,
                "num_blocks": 4,
                "layers_per_block": 1,
                "head_dim": 32,
                "num_classes": 10,
                "pixel_map": {"normal_cells": ((0, 20.0), (255, 3.0)), "basis": "cosine"},
            },
            "data": {
                "source": "idx",
                "path": "/usr/share/datasets/fashion-mnist",
                "noise": "uniform",
                "label_drop": 0.1,
            },
            "train": {
                "steps": 22_000,
                "batch_size": 16,
                "optimizer": {"name": "muon"},
                "lr": 6e-3,
                "min_lr": 1e-6,
                "warmup": 300,
                "weight_decay": 1e-4,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.999,
                "steps_per_call": 20,
                "log_every": 100,
                "checkpoint_every": 500,
                "sample_every": 100000,
                "evaluate_every": 0,
            },
            "sample": {"num": 40, "guidance": 0.0, "solver": "sequential"},
            "evaluate": {"draws": 1, "batch_size": 64, "held_out": 512},
            "seed": 0,
        }
    )
    if variant == "large":
        config.name = "fashion-mnist-large"
        config.flow.update(
            {"patch_size": 2, "width": 384, "num_blocks": 8, "layers_per_block": 4, "head_dim": 64, "dropout": 0.1}
        )
        config.train.update({"steps": 100_000, "batch_size": 256, "lr": 3e-4, "warmup": 1000, "ema": 0.9999})
        config.train.optimizer.name = "adamw"
    elif variant in ("tweedie", "levels"):
        config.name = f"fashion-mnist-{variant}"
        with config.ignore_type():
            config.flow.pixel_map = None
        config.data.update({"noise": "gaussian", "noise_std": 0.1})
        config.sample.denoise = "score"
        if variant == "levels":
            config.flow.noise_levels = (0.02, 0.5)
            config.data.noise_std = 0.5
            config.sample.denoise = "iterative"
    elif is_tiny(variant):
        config.name = "fashion-mnist-tiny"
        config.flow.update({"width": 16, "num_blocks": 2, "head_dim": 8})
        config.train.update({"steps": 4, "batch_size": 8, "warmup": 1, "ema": 0.5, "steps_per_call": 2, "log_every": 2})
        config.train.checkpoint_every = 4
        config.sample.num = 4
    return config
