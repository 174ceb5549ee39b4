"""Reads the parts of a checkpoint and verifies each against its checksum; errors are one sentence."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.training.checkpoints.digests import digest, json_digest
from starflow_jax.training.checkpoints.late_reads import silent_after_an_error
from starflow_jax.training.distributed.agreement import everywhere

DIGESTS = "digests"

T = TypeVar("T")


class Unusable(ValueError):
    """A checkpoint cannot be used; the message continues its name: "is damaged: ..."."""


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder (or a file of that name) in a folder of checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))


def read_digests(folder: Path) -> Mapping[str, Any]:
    """The checksums of the parts of a checkpoint by name, and its step under "step".

    Raises:
      Unusable: anything but a complete checkpoint.
    """
    if not folder.is_dir():
        raise Unusable("is a file" if folder.exists() else "does not exist")
    if not (folder / DIGESTS).is_dir():
        raise Unusable(f"is not a starflow checkpoint, or is incomplete: it has no {DIGESTS}")
    digests = _json(folder, DIGESTS)
    if not isinstance(digests, Mapping):
        raise Unusable(f"is damaged: its {DIGESTS} are not a table")
    if str(digests.get("step")) != folder.name:
        raise Unusable(f"has the name of another step; it is that of step {digests.get('step')}")
    return digests


def read_json(folder: Path, name: str, digests: Mapping[str, Any]) -> Any:
    """The JSON value of a part.

    Raises:
      Unusable: the part is missing, cannot be read, or differs from the saved value.
    """
    value = _json(folder, name)
    if json_digest(value) != digests.get(name):
        raise Unusable(f"is damaged: {name} does not match its checksum")
    return value


def read_arrays(folder: Path, name: str, like: Any, digests: Mapping[str, Any]) -> Any:
    """The arrays of a part.

    Args:
      like: ShapeDtypeStructs; one without a sharding goes to this process's first device.

    Raises:
      Unusable: as `read_json`; or arrays of other names or shapes.
    """
    _check_exists(folder, name)
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default), like
    )
    try:
        # The handler itself: a checkpointer would wait for all processes, even for one that failed to read.
        handler = ocp.StandardCheckpointHandler()
        with silent_after_an_error():
            tree = handler.restore(folder / name, args=ocp.args.StandardRestore(placed))
    except Exception as error:  # Orbax and tensorstore raise many types of errors for damaged files
        raise _unreadable(name, error) from error
    if digest(tree) != digests.get(name):
        raise Unusable(f"is damaged: {name} does not match its checksum")
    return tree


def _json(folder: Path, name: str) -> Any:
    _check_exists(folder, name)
    try:
        # Without Orbax, which would look for the devices of this process first.
        return parse_json(read_text(folder / name / "metadata"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError and ValueError also for absurd values
        raise _unreadable(name, error) from error


def _check_exists(folder: Path, name: str) -> None:
    if not (folder / name).is_dir():
        raise Unusable(f"is damaged: it has no {name}")


def _unreadable(name: str, error: Exception) -> Unusable:
    return Unusable(f"is damaged or of another model: its {name} cannot be read ({type(error).__name__})")


def agreed(folder: Path, read: Callable[[], T]) -> T:
    """The result of `read`, if it succeeds on every process. A collective.

    Raises:
      ValueError: on all processes if `read` raised Unusable on one of them; the message names `folder`.
    """
    problem = None
    with _captured() as printed:
        try:
            result = read()
        except Unusable as error:
            problem = str(error)
        if problem is not None:
            gc.collect()  # remaining readers write their warnings now
    if problem is None:
        sys.stderr.write(printed.getvalue())
    if not everywhere(problem is None):
        raise ValueError(f"checkpoint {folder} {problem or 'could not be read by another process'}")
    return result


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Captures standard error, which the reader threads of a damaged file fill."""
    log = logging.getLogger("asyncio")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL + 1)  # its handlers write to the original stream
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            yield printed
    finally:
        log.setLevel(level)
