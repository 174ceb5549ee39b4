"""Opens the splits of the data that are prepared."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.choices import Split, choices
from starflow_jax.core.config.checks import check
from starflow_jax.core.storage.copies import local_path
from starflow_jax.data.preparation.prepare_request import PrepareRequest
from starflow_jax.data.preparation.tfds_building import open_data_set
from starflow_jax.data.sources.caption_files import CaptionFormat
from starflow_jax.data.sources.folders import open_folder
from starflow_jax.data.sources.image_collection import ImageCollection
from starflow_jax.data.sources.parquet import ParquetRows
from starflow_jax.data.sources.splits import named_entry, shard_files
from starflow_jax.data.sources.tars import KEYS_END, Tars
from starflow_jax.media.medium import IMAGES


def open_splits(request: PrepareRequest) -> dict[str, ImageCollection]:
    """The images of every split by the name under which it is stored.

    Raises:
      ValueError: the data or one of the splits are missing, or cannot be read.
    """
    if request.kind == "tfds":
        return dict(open_data_set(request.source, request.data_dir, request.splits, dict(request.features)))
    names = [name for name, _ in request.splits] or _found(request)
    return {name: _open(request, name) for name in names}


def _open(request: PrepareRequest, split: str) -> ImageCollection:
    features = dict(request.features)
    reading = CaptionFormat(request.caption_lines == "alternatives", features.pop("caption", None))
    if request.kind == "folder":
        return open_folder(local_path(request.source), split, IMAGES, reading)
    if request.kind == "tar":
        return Tars.scan(request.source, split, reading=reading, keys=request.tar_keys or KEYS_END[0])
    return ParquetRows.open(request.source, split, reading, **features)


def _found(request: PrepareRequest) -> list[str]:
    """The splits that the source has; training alone where that cannot be told."""
    if request.kind == "folder":
        path = local_path(request.source)
        check(path.is_dir(), f"data folder {path} does not exist")
        found = [split for split in choices(Split) if named_entry(path, split, "", Path.is_dir) is not None]
    else:
        found = [split for split in choices(Split) if shard_files(request.source, split, f".{request.kind}")]
    return found or ["train"]
