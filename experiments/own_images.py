"""A flow on your own folder of images: its size, its classes or captions and its training are chosen from the folder.

    starflow data --config experiments/own_images.py --config.data.path=photos --out sheet.png
    starflow train --config experiments/own_images.py --config.data.path=photos --workdir runs/photos
    starflow sample --workdir runs/photos --out samples.png

Data: a folder of images. Folders in it are classes; without them, captions are read from `.txt` or `.json` files beside
the images; without either, the flow is unconditional. Folders `train` and `test` (or `val`) inside, where there are
any, separate the splits; `starflow evaluate` needs `test`.
Model: images of 16 to 128 pixels, 256 tokens or fewer; 4 to 8 blocks, 128 to 512 wide, by the number of images
(`starflow_jax.data.suggestion`). Whatever --config.NAME=VALUE sets is kept, and the rest is chosen to fit.
Hardware: one GPU; with --config.flow.image_size=16 and a few hundred images also a CPU.
Expected: samples that resemble the training images in colour and layout within the first tenth of the updates. A few
hundred images are learned by heart; compare the bits/dim of training and of a `test` folder.
The configuration that was chosen is in `config.json` of the run. `starflow init --data photos --out my_config.py`
writes the same choices into a file, with the reason for each.
`experiments/own_images.py:tiny` trains ten updates of a tiny flow on the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from starflow_jax.data.suggestion import suggest_config, survey_folder
from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """What is set before the folder is known; variant: "" for the real one, "tiny" for tests."""
    config = ConfigDict({"flow": {}, "data": {"source": "images"}, "train": {}})
    if is_tiny(variant):
        config.flow.update(image_size=8, patch_size=4, width=24, num_blocks=2, layers_per_block=1, head_dim=24)
        config.train.update(steps=10, batch_size=4, warmup=1, log_every=5)
    return config


def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Chooses what is not set, after the overrides of the command line.

    Raises:
      ValueError: no folder is named, or it holds no images that can be read.
    """
    path = values["data"].get("path")
    if path is None:
        raise ValueError("data.path is missing; --config.data.path=FOLDER names the folder of images")
    return suggest_config(survey_folder(Path(path)), values).values
