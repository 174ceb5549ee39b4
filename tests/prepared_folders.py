"""Folders that `starflow prepare` writes, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from picture_files import write_photos

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, FlowConfig, TextConfig
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.source_opening import open_source

FLOW = FlowConfig(
    family="starflow", rope=True, sos=True, channels=3, image_size=16, patch_size=4, width=20, num_blocks=1,
    layers_per_block=1, head_dim=20, text_dim=3, text_length=8,
)  # fmt: skip
TEXT = TextConfig(("a", "cat", "dog"))
SHAPES = {"cat": [(20, 20), (20, 40), (20, 20), (24, 20)], "dog": [(20, 44), (20, 20), (20, 21)]}


def photos(folder: Path) -> Path:
    """A folder of seven pictures of two classes, with captions."""
    write_photos(folder, SHAPES)
    return folder


def prepare(kind: str, source: Path | str, out: Path | str, *options: str) -> int:
    """Calls the command; returns its exit code."""
    return main(["prepare", kind, str(source), "--out", str(out), "--quiet", *options])


def opened(path: Path | str, source: str = "prepared", split: str = "train", **fields) -> Source:
    """A source with captions of three words."""
    return open_source(DataConfig(source=source, path=str(path), **fields), split, flow=FLOW, text=TEXT)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of the files of a folder by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> dict:
    """The values of a manifest."""
    return json.loads((folder / "manifest.json").read_text())


def same(one: dict, other: dict) -> None:
    """Asserts that two examples or batches are equal."""
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], name)
