"""A flow on your own folder of images: its size, its classes or captions and its training are chosen from the folder.

    starflow data --config experiments/own_images.py --config.data.path=photos --out sheet.png
    starflow train --config experiments/own_images.py --config.data.path=photos --workdir runs/photos
    starflow sample --workdir runs/photos --out samples.png

Data: a folder of images. Folders in it are classes; without them, captions are read from files beside the images
(docs/how_to/files.md); without either, the flow is unconditional. Folders `train` and `test` (or `val`) inside, if
present, separate the splits; `starflow evaluate` needs `test`.
Model: images of 16 to 128 pixels, 256 tokens or fewer; 4 to 8 blocks, 128 to 512 wide, depending on the number of
images (`starflow_jax.data.suggestion`). Values set by --config.NAME=VALUE are kept, and the others are chosen to fit.
Hardware: one GPU; with --config.flow.image_size=16 and a few hundred images, a CPU is enough.
Expected: samples that resemble the training images in colour and layout within the first tenth of the updates. A few
hundred images are memorised; compare the bits/dim of the training images with that of a `test` folder.
The chosen configuration is in `config.json` of the run. `starflow init --data photos --out my_config.py`
writes the same choices into a file, with the reason for each.
`experiments/own_images.py:tiny` trains ten updates of a tiny flow on the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from starflow_jax.core.storage.copies import local_path
from starflow_jax.data.suggestion import suggest_config, survey_folder
from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The fields that do not depend on the folder; variant: "" for the full experiment, "tiny" for tests."""
    config = ConfigDict({"flow": {}, "data": {"source": "images"}, "train": {}})
    if is_tiny(variant):
        config.flow.update(image_size=8, patch_size=4, width=24, num_blocks=2, layers_per_block=1, head_dim=24)
        config.train.update(steps=10, batch_size=4, warmup=1, log_every=5)
    return config


def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Chooses the values of fields that are not set, after the overrides of the command line.

    Raises:
      ValueError: no folder is given, or it holds no readable images.
    """
    path = values["data"].get("path")
    if path is None:
        raise ValueError("data.path is missing; --config.data.path=FOLDER names the folder of images")
    return suggest_config(survey_folder(local_path(path)), values).values
