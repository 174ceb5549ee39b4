"""The folder of a run: its files, the run that it belongs to, and the lock while it is in use."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment
from starflow_jax.core.config.build import from_json, to_json
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
from starflow_jax.core.config.source_config import CaptionConfig, SourceConfig
from starflow_jax.core.regular_files import read_json, read_text
from starflow_jax.core.storage.addresses import refuse_address
from starflow_jax.core.storage.local_moves import locked
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint
from starflow_jax.training.checkpoints.same_data import check_same_data

T = TypeVar("T")
S = TypeVar("S", bound=SourceConfig)

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
CSV_FILE = "metrics.csv"
EVENTS_FOLDER = "events"
CURVES_FILE = "curves.png"

# Fields that may differ when a run is resumed, since they do not affect the parameters.
_FREE = ("sample", "evaluate", "mesh", "kl_bound")
_FREE_IN_TRAIN = (
    "log_every",
    "checkpoint_every",
    "sample_every",
    "evaluate_every",
    "keep",
    "keep_best",
    "best_metric",
    "max_skipped",
    "steps_per_call",
    "accumulate",
)
_FREE_IN_FLOW = ("remat",)
# A folder may be moved as long as its contents are the same (`same_data`).
# The digest of the data covers the names of the classes.
_FREE_IN_DATA = ("threads", "workers", "prefetch", "index", "path", "decoder", "class_names")
# Fields that a run records; None in runs of earlier versions.
RECORDED_FIELDS = ("levels", "lines")
_FREE_BY_PATH = {
    "config": _FREE,
    "config.train": _FREE_IN_TRAIN,
    "config.data": _FREE_IN_DATA,
    "config.data.mixture": _FREE_IN_DATA,
    "config.flow": _FREE_IN_FLOW,
}


def read_config(workdir: Path, cls: type[T] = ExperimentConfig) -> T | None:  # type: ignore[assignment]
    """The configuration, of class `cls`, of the run in `workdir`; None if there is no run.

    Raises:
      ValueError: the file is not a valid configuration.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        return None
    try:
        text = read_text(path)
        config = from_json(text, cls)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if cls is ExperimentConfig and _is_of_autoencoder(path):
            raise ValueError(f"workdir {workdir} must contain the run of a flow, got that of an autoencoder") from error
        raise ValueError(f"{path} is not a configuration: {error}") from error
    # Up to version 0.2, which did not record it, each line of a text file was a caption of its own.
    return config if '"lines": ' in text else _with_alternatives(config)


def with_recorded(config: ExperimentConfig, workdir: Path) -> ExperimentConfig:
    """The configuration with what it leaves open and the run in `workdir`, if there is one, has recorded.

    Raises:
      ValueError: the configuration of the run cannot be read, or its weights are quantised.
    """
    old = read_config(workdir)
    if old is None:
        return config
    check_trainable(old.flow.quantise, f"workdir {workdir}")
    parts = zip(config.data.mixture, old.data.mixture, strict=False)
    mixture = tuple(_recorded(part, then) for part, then in parts)
    data = _recorded(config.data, old.data)
    if len(mixture) == len(data.mixture):
        data = dataclasses.replace(data, mixture=mixture)
    return dataclasses.replace(config, data=data)


def _recorded(part: S, then: SourceConfig) -> S:
    """One source with the recorded fields of the same source of a run."""
    if part.source != then.source:
        return part
    lines = part.captions.lines or then.captions.lines
    captions = dataclasses.replace(part.captions, lines=lines)
    return dataclasses.replace(part, levels=then.levels if part.levels is None else part.levels, captions=captions)


def _with_alternatives(config: T) -> T:
    """A configuration whose text files contain a caption in each line."""
    data: Any = getattr(config, "data", None)
    if not isinstance(data, DataConfig):
        return config
    mixture = tuple(dataclasses.replace(part, captions=_alternatives(part)) for part in data.mixture)
    data = dataclasses.replace(data, captions=_alternatives(data), mixture=mixture)
    return dataclasses.replace(config, data=data)  # type: ignore[type-var]


def _alternatives(part: SourceConfig) -> CaptionConfig:
    return dataclasses.replace(part.captions, lines="alternatives")


def read_any_config(workdir: Path) -> AnyExperiment | None:
    """The configuration of a run in `workdir`: of a flow, an autoencoder or a learned inverse; None if there is no run.

    Raises:
      ValueError: the file is not a valid configuration.
    """
    path = Path(workdir) / CONFIG_FILE
    if _is_of_inverse(path):
        return read_config(workdir, LearnedInverseExperiment)
    return read_config(workdir, AutoencoderExperiment) if _is_of_autoencoder(path) else read_config(workdir)


def _is_of_autoencoder(path: Path) -> bool:
    """Whether a file of configuration has the fields of the training of an autoencoder."""
    try:
        values = read_json(path)
    except ValueError:
        return False
    return isinstance(values, dict) and "flow" not in values and {"loss", "network"} <= set(values)


def _is_of_inverse(path: Path) -> bool:
    """Whether a file of configuration has the fields of the training of a learned inverse."""
    try:
        values = read_json(path)
    except ValueError:
        return False
    return isinstance(values, dict) and {"flow_step", "pairs"} <= set(values)


def claim_workdir(
    workdir: Path, config: Any, data: Sequence[SourceFingerprint] | None = None, *, of_hosts: bool = False
) -> None:
    """Creates the folder of a run, or checks that the run in it has the same configuration.

    Only fields that do not affect the parameters (logging and saving intervals, sampling, evaluation) may differ.

    Args:
      data: fingerprint of the training data (`data.pipeline.fingerprint`); None skips the comparison.
      of_hosts: whether the files are those on which several hosts have agreed. The disk that held the configuration may
        be lost; each checkpoint has its own, which is compared when it is restored.

    Raises:
      ValueError: a folder with other contents, a run of another configuration or of other data, or a path that cannot
        be written.
    """
    workdir = Path(workdir)
    refuse_address("workdir", workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_workdir(workdir, config, data, of_hosts=of_hosts)
        write_text(workdir / CONFIG_FILE, to_json(config))
    except OSError as error:
        raise ValueError(f"workdir {workdir} cannot be written: {error.strerror or error}") from error


def check_workdir(
    workdir: Path, config: Any, data: Sequence[SourceFingerprint] | None = None, *, of_hosts: bool = False
) -> None:
    """Checks what `claim_workdir` does and writes nothing; a folder that does not exist is free.

    Raises:
      ValueError: a folder with other contents, or a run of another configuration or of other data.
    """
    if not workdir.exists():
        return
    old = read_config(workdir, type(config))
    if old is None and of_hosts and (workdir / CHECKPOINT_FOLDER).is_dir():
        old = config
    if old is None and any(workdir.iterdir()):
        raise ValueError(f"workdir {workdir} is not empty and contains no training run")
    if old is not None:
        difference = first_difference(old, config)
        if difference is not None:
            name, before, now = difference
            raise ValueError(
                f"workdir {workdir} contains a run with another configuration: {name} is {before!r} in the folder "
                f"and {now!r} in this call"
            )
        if data is not None:
            check_same_data(workdir / CHECKPOINT_FOLDER, old, config, data)
    for names, kind, is_kind in (
        ((CHECKPOINT_FOLDER, EVENTS_FOLDER), "folder", Path.is_dir),
        ((CSV_FILE, CURVES_FILE), "file", Path.is_file),
    ):
        for path in (workdir / name for name in names):
            if path.exists() and not is_kind(path):
                raise ValueError(f"workdir {workdir} cannot contain a run: {path.name} exists and is not a {kind}")


def first_difference(old: Any, new: Any, path: str = "config") -> tuple[str, Any, Any] | None:
    """The first field, with both values, in which two configurations differ so that they describe different runs."""
    for name in old.__dataclass_fields__:
        a, b = getattr(old, name), getattr(new, name)
        free = _FREE_BY_PATH.get(path, ())
        if name in free or a == b or (name in RECORDED_FIELDS and None in (a, b)):
            continue
        pairs = [(a, b)]
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            pairs = list(zip(a, b, strict=True))
        if all(type(x) is type(y) and hasattr(x, "__dataclass_fields__") for x, y in pairs):
            differences = (first_difference(x, y, f"{path}.{name}") for x, y in pairs)
            if difference := next((one for one in differences if one is not None), None):
                return difference
            continue
        return f"{path}.{name}", a, b
    return None


@contextlib.contextmanager
def in_use(workdir: Path, name: str = "workdir", doing: str = "trains") -> Iterator[None]:
    """Locks `workdir` against other processes; the operating system releases the lock when this process ends.

    Args:
      name, doing: name of the folder and the activity, for the error message.

    Raises:
      ValueError: another process has locked it.
    """
    with locked(workdir) as free:
        if not free:
            raise ValueError(f"{name} {workdir} is in use by another process, which {doing} in it")
        yield


def is_in_use(workdir: Path) -> bool:
    """Whether a process of this machine has locked `workdir`. Several may look at once without seeing each other."""
    with locked(workdir, shared=True) as free:
        return not free
