"""Configuration shared by the experiments on released models."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# Fields common to STARFlows of all sizes (arXiv 2506.06276, 2511.20462).
STARFLOW = {
    "family": "starflow",
    "rope": True,
    "sos": True,
    "order": "L2R",
    "scale": "softplus",
    "soft_clip": 4.0,
    "final_norm": True,
    "cond_top_only": True,
}


def is_tiny(variant: str) -> bool:
    """Whether the variant of an experiment is "tiny".

    Raises:
      ValueError: the variant is neither "" nor "tiny".
    """
    if variant not in ("", "tiny"):
        raise ValueError(f"variant must be '' or 'tiny', got {variant!r}")
    return variant == "tiny"


def tarflow(
    variant: str, *, name: str, flow: dict[str, Any], data: dict[str, Any], batch_size: int, steps: int
) -> ConfigDict:
    """A released TARFlow (arXiv 2412.06329): 8 blocks of 8 layers on 1,024 tokens, heads of 64, AdamW at 1e-4.

    Args:
      variant: "" as released, "tiny" for tests.
      name: name of the experiment.
      flow: image_size, patch_size, width, and other fields that differ.
      data: noise and location of the images.
      batch_size, steps: of the training; the first hundredth of the steps is warm-up.
    """
    shared = {
        "family": "tarflow",
        "channels": 3,
        "num_blocks": 8,
        "layers_per_block": 8,
        "head_dim": 64,
        "remat": "block",
    }
    train = {"steps": steps, "batch_size": batch_size, "lr": 1e-4, "min_lr": 1e-6, "warmup": steps // 100}
    config = ConfigDict({"name": name, "flow": shared | flow, "data": {"source": "npz"} | data, "train": train})
    if is_tiny(variant):
        config.flow.update({"image_size": 8, "patch_size": 4, "width": 16, "head_dim": 16, "num_blocks": 2})
        config.flow.update({"layers_per_block": 1, "dtype": "float32", "remat": "none"})
        config.train.update({"steps": 10, "batch_size": 4, "warmup": 1})
    return config


def itarflow(
    variant: str,
    *,
    name: str,
    image_size: int,
    patch_size: int,
    width: int,
    highest_level: float,
    epochs: int,
    guidance: float,
    label_drop: float = 0.1,
) -> ConfigDict:
    """A noise-conditioned TARFlow on ImageNet (iTARFlow, arXiv 2604.20041): 4 blocks of 4, 4, 4 and 24 layers.

    Args:
      variant: "" as released, "tiny" for tests.
      name, image_size, patch_size, width: of the experiment and of its flow.
      highest_level: t1, the noise level that samples are drawn at; the lowest level is 0.01.
      epochs: of 2,502 updates.
      guidance: weight of the released command; label_drop: share of dropped labels.
    """
    epoch = 1_281_167 // 512
    config = ConfigDict(
        {
            "name": name,
            "flow": {
                "family": "tarflow",
                "channels": 3,
                "image_size": image_size,
                "patch_size": patch_size,
                "width": width,
                "num_blocks": 4,
                "layers_per_block": (4, 4, 4, 24),
                "head_dim": 64,
                "num_classes": 1000,
                "noise_levels": (0.01, highest_level),
                "dtype": "bfloat16",
                "remat": "block",
            },
            "data": {
                "source": "npz",
                "path": f"data/imagenet{image_size}",
                "noise": "gaussian",
                "noise_std": highest_level,
                "label_drop": label_drop,
            },
            "train": {
                "steps": epochs * epoch,
                "batch_size": 512,
                "lr": 1e-4,
                "min_lr": 1e-5,
                "warmup": epoch,
                "level_distribution": "uniform",
                "level_weight": "level",
            },
            "sample": {"guidance": guidance, "annealed_guidance": True, "denoise": "iterative"},
        }
    )
    if is_tiny(variant):
        config.flow.update({"image_size": 8, "patch_size": 4, "width": 16, "head_dim": 16, "num_blocks": 2})
        config.flow.update({"layers_per_block": (1, 2), "dtype": "float32", "remat": "none"})
        config.train.update({"steps": 10, "batch_size": 4, "warmup": 1})
    return config
