"""The request of an encoding: all that `starflow encode` accepts, as one checked value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.choices import Dtype, LatentDtype, Split, choices
from starflow_jax.core.config.checks import check_choice, check_integer
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require


@dataclasses.dataclass(frozen=True)
class EncodeRequest:
    """A request to encode the data of an experiment with a frozen autoencoder.

    Attributes:
      config: the experiment, which names the data and defines the captions and the vocabulary or text encoder.
      out: new or empty folder, written atomically.
      split: of the data.
      limit: maximum number of examples, unreadable ones included; None for all.
      autoencoder: a .npz file or a folder; None for `data.autoencoder`, and for pixels without any.
      compute: dtype of the computations of the autoencoder; None for `data.autoencoder_dtype`.
      tile: side in latent positions of the tiles that are encoded one by one; None for whole frames.
      fit_patch_pca: patch size and channels of a patch PCA that is fitted instead of reading an autoencoder.
      fit_images: number of images that it is fitted to.
      dtype: of the stored values.
      batch_size: examples encoded at a time.

    Raises:
      RequestError, ValueError: a field is out of range, or both `autoencoder` and `fit_patch_pca` are given.
    """

    config: ExperimentConfig
    out: Path
    split: Split = "train"
    limit: int | None = None
    autoencoder: Path | None = None
    compute: Dtype | None = None
    tile: int | None = None
    fit_patch_pca: tuple[int, int] | None = None
    fit_images: int = 2000
    dtype: LatentDtype = "float16"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_choice("split", self.split, choices(Split))
        check_choice("dtype", self.dtype, choices(LatentDtype))
        if self.compute is not None:
            check_choice("compute", self.compute, choices(Dtype))
        for name, minimum in (("limit", 1), ("tile", 8), ("fit_images", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, minimum=minimum)
        for value in self.fit_patch_pca or ():
            check_integer("fit_patch_pca", value, minimum=1)
        require(
            self.autoencoder is None or self.fit_patch_pca is None,
            "{autoencoder} and {fit_patch_pca} are mutually exclusive",
        )
