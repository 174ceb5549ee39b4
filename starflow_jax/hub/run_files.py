"""Which files of a run, of a model folder and of a frozen model are published: those that are read, and no others."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from starflow_jax.core.storage.copies import one_step
from starflow_jax.core.storage.hub_copies import NAMED_SUFFIXES, is_safe
from starflow_jax.sampling.model_folder import MODEL_FILE, load_model_folder

_OF_A_RUN = re.compile(r"(config|calibration|origin)\.json|inverse/config\.json|(inverse/)?checkpoints/\d+/.+")


def run_files(root: Path, step: int) -> list[str]:
    """Names of the files of a run, or of a model folder, that are published at a step, below the folder.

    Logs, results, samples, events and whatever else somebody keeps in the folder are not among them, nor is the state
    of the optimizer.
    """
    if not (root / MODEL_FILE).is_file():
        return _flow_files(root, step)
    folder = load_model_folder(root)
    names = [MODEL_FILE]
    for part, inner in (
        (folder.flow, _flow_files(folder.flow, step)),
        *((part.path, frozen_files(part.path)) for part in (folder.autoencoder, folder.text_encoder)),
    ):
        below = part.relative_to(folder.path).as_posix()
        names += [f"{below}/{name}" if name else below for name in inner]
    return sorted(names)


def _flow_files(run: Path, step: int) -> list[str]:
    return one_step([name for name in _plain(run) if _OF_A_RUN.fullmatch(name) and is_safe(name)], step)


def frozen_files(path: Path) -> list[str]:
    """Names of the files of a frozen model below its folder; of a frozen model in one file the empty name."""
    if not path.is_dir():
        return [""]
    return [name for name in _plain(path) if PurePosixPath(name).suffix.lower() in NAMED_SUFFIXES]


def _plain(folder: Path) -> list[str]:
    """Names of the files below a folder, without those of which a part begins with a dot."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
