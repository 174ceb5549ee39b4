"""Which folders are published models, by the names of their files."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the index of shards, where there are several


def is_published(path: Path) -> bool:
    """Whether a folder holds an experiment and weights, and neither the checkpoints of a run nor a model folder."""
    others = (path / "checkpoints").exists() or (path / "model.json").exists()
    return not others and (path / "config.json").is_file() and any((path / name).is_file() for name in WEIGHTS)
