"""Reading the parts of one checkpoint, each checked against its checksum, and saying in one sentence what is wrong."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from starflow_jax.training.checkpoints.digests import digest, json_digest
from starflow_jax.training.distributed.agreement import everywhere

DIGESTS = "digests"

T = TypeVar("T")


class Unusable(ValueError):
    """A checkpoint cannot be used; the message goes on after its name: "is damaged: ..."."""


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder (or something of its name) in a folder of checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))


def read_digests(folder: Path) -> Mapping[str, Any]:
    """The checksums of a checkpoint's parts, by name, and under "step" its step.

    Raises:
      Unusable: anything that is not a whole checkpoint.
    """
    if not folder.is_dir():
        raise Unusable(f"is no checkpoint but {'a file' if folder.exists() else 'missing'}")
    if not (folder / DIGESTS).is_dir():
        raise Unusable(f"is no checkpoint of starflow, or half of one: it has no {DIGESTS}")
    digests = _json(folder, DIGESTS)
    if not isinstance(digests, Mapping):
        raise Unusable(f"is damaged: its {DIGESTS} are no table")
    if str(digests.get("step")) != folder.name:
        raise Unusable(f"is not that of its step but of step {digests.get('step')}")
    return digests


def read_json(folder: Path, name: str, digests: Mapping[str, Any]) -> Any:
    """The JSON value of a part.

    Raises:
      Unusable: no such part, one that cannot be read, or another value than was saved.
    """
    value = _json(folder, name)
    if json_digest(value) != digests.get(name):
        raise Unusable(f"is damaged: {name} is not what was saved")
    return value


def read_arrays(folder: Path, name: str, like: Any, digests: Mapping[str, Any]) -> Any:
    """The arrays of a part.

    Args:
      like: ShapeDtypeStructs; one without a sharding goes to this process's first device.

    Raises:
      Unusable: as `read_json`, or arrays of other names or shapes.
    """
    _check_there(folder, name)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), like
    )
    try:
        # The handler itself: a checkpointer waits for all processes, also for one that has failed to read.
        handler = ocp.StandardCheckpointHandler()
        tree = handler.restore(folder / name, args=ocp.args.StandardRestore(placed))
    except Exception as error:  # the libraries below raise many kinds for damaged files
        raise _unreadable(name, error) from error
    if digest(tree) != digests.get(name):
        raise Unusable(f"is damaged: {name} is not what was saved")
    return tree


def _json(folder: Path, name: str) -> Any:
    _check_there(folder, name)
    try:
        # Plainly, as Orbax would look for the devices of this process first.
        return json.loads((folder / name / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also an integer of too many digits
        raise _unreadable(name, error) from error


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_dir():
        raise Unusable(f"is damaged: it has no {name}")


def _unreadable(name: str, error: Exception) -> Unusable:
    return Unusable(f"is damaged or of another model: its {name} cannot be read ({type(error).__name__})")


def agreed(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns, if it does on every process.

    Raises:
      ValueError: it raised Unusable on some process: one sentence that names `folder`, on all of them.
    """
    problem = None
    with _kept_back() as printed:
        try:
            result = read()
        except Unusable as error:
            problem = str(error)
        if problem is not None:
            gc.collect()  # what is left of the readers complains now
    if problem is None:
        sys.stderr.write(printed.getvalue())
    if not everywhere(problem is None):
        raise ValueError(f"checkpoint {folder} {problem or 'could not be read by another process'}")
    return result


@contextlib.contextmanager
def _kept_back() -> Iterator[io.StringIO]:
    """Collects standard error: the readers of a damaged file fill it from threads of their own."""
    log = logging.getLogger("asyncio")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL + 1)  # its handlers hold the stream itself
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            yield printed
    finally:
        log.setLevel(level)
