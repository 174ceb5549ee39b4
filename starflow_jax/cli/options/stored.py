"""Options that take a path or the address of a store, and what a command does with an address.

Parsing an address gives a `StoredOption`; `cli.staging` puts the path of a local file or folder in its place before
the command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from starflow_jax.cli.options import outputs, paths
from starflow_jax.core.storage.addresses import Address, is_address, parts_of_scale
from starflow_jax.core.storage.hub_addresses import HubAddress, is_hub_address
from starflow_jax.hub.published_files import is_published

# What becomes of an address:
#   read     a local copy of all of it
#   model    likewise, of a model folder or a published folder, which becomes a run
#   run      a local copy of a run without the state of its optimizer, at one step: that of --step, or the newest
#   runs     likewise, at all steps
#   outline  the small files of a run, and empty ones of the sizes of the others
#   work     a folder that this process owns and that is published while the command runs
#   output   a new file or folder, published when the command has ended
Use = Literal["read", "model", "run", "runs", "outline", "work", "output"]


@dataclasses.dataclass(frozen=True)
class StoredOption:
    """An address on the command line, and what it is used for."""

    address: Address
    use: Use


@dataclasses.dataclass(frozen=True)
class PublishedOption:
    """The local folder of a published model on the command line, which becomes a run before the command runs."""

    path: Path


Parsed = Path | StoredOption | PublishedOption
_OF_MODELS = ("model", "run", "runs", "outline")


def stored(use: Use, local: Callable[[str], Path] = paths.path) -> Callable[[str], Parsed]:
    """Parses a path, by `local`, or an address."""

    def parse(text: str) -> Parsed:
        if not is_address(text):
            path = local(text)
            return PublishedOption(path) if use in _OF_MODELS and is_published(path) else path
        try:
            if is_hub_address(text):
                HubAddress.parse(parts_of_scale(text)[0])
            return StoredOption(Address.parse(text), use)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def read_path(text: str) -> Parsed:
    """Parses a file or folder that is read."""
    return stored("read")(text)


def model_path(text: str) -> Parsed:
    """Parses a model folder, or another folder of a trained model."""
    return stored("model")(text)


def run_path(text: str) -> Parsed:
    """Parses the folder of a run of which one checkpoint is read."""
    return stored("run")(text)


def runs_path(text: str) -> Parsed:
    """Parses the folder of a run of which every checkpoint is read."""
    return stored("runs")(text)


def outline_path(text: str) -> Parsed:
    """Parses the folder of a run that is described without its arrays."""
    return stored("outline")(text)


def work_path(text: str) -> Parsed:
    """Parses a folder that is written while the command runs, and that a later command may continue."""
    return stored("work")(text)


def output_path(text: str) -> Parsed:
    """Parses a new file or folder, whose name the command checks itself."""
    return stored("output")(text)


def output_file(text: str) -> Parsed:
    """Parses a file that the command writes; see `outputs.output_file`."""
    return stored("output", outputs.output_file)(text)
