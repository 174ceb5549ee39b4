"""A noise-conditioned TARFlow on scikit-learn's 8x8 handwritten digits, for iterative denoising.

    starflow train --config experiments/digits_levels.py --workdir runs/levels
    starflow evaluate --workdir runs/levels --metrics fid,kid --num-samples 2000 --guidance 0 \\
        --denoise iterative --levels 30
    starflow train --config experiments/digits_levels.py:tiny --workdir runs/tiny      # seconds, for tests

The recipe is that of `experiments/digits.py` with half of the updates and two layers in the deep block. The noise level
of an image is uniform between 0.02 and 0.5, on pixels in [-1, 1] of 17 grey levels, and weighs its loss. What the
samples gain by iterative denoising: docs/how_to/noise_levels.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments import digits


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Args:
      variant: "" for the full experiment, "tiny" for a model that trains in seconds, for tests only.

    Raises:
      ValueError: an unknown variant.
    """
    config = digits.get_config(variant)
    config.name = config.name.replace("digits", "digits-levels")
    config.flow.noise_levels = (0.02, 0.5)
    config.data.update({"noise": "gaussian", "noise_std": 0.5})
    config.sample.denoise = "iterative"
    if not variant:
        with config.ignore_type():  # one number for all blocks becomes one for each
            config.flow.layers_per_block = (1, 1, 1, 2)
        config.train.update({"steps": 4000, "checkpoint_every": 1000, "sample_every": 1000})
    return config
