"""Sends the metrics of a run to Weights & Biases, an optional dependency."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text

ID_FILE = "wandb_id.txt"


def check_installed() -> None:
    """Raises ValueError unless the library can be imported."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError("Weights & Biases is not installed: pip install wandb") from error


class WandbRecorder:
    """A run of Weights & Biases for the folder of a run; resumed together with it.

    Args:
      project: name of the project; name: of the run; config: plain values.
      workdir: stores the id of the run, and receives the library's files.

    Raises:
      ValueError: the library is not installed.
    """

    def __init__(self, project: str, workdir: Path, *, name: str, config: Mapping[str, Any]):
        check_installed()
        import wandb

        path = Path(workdir) / ID_FILE
        if not path.is_file():
            write_text(path, uuid.uuid4().hex)
        identity = path.read_text(encoding="utf-8").strip()
        self._run = wandb.init(
            project=project, id=identity, resume="allow", name=name, config=dict(config), dir=str(workdir)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends a row; values that are not finite are omitted."""
        self._run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """Finishes the run and sends pending rows."""
        self._run.finish()
