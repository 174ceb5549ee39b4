"""What each of several processes without a common disk has written to one folder of a store.

The first process publishes the list of all files (`manifest`). Every other one writes its own files, and then an object
that names them, so that the first process can add them to the list.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection

from starflow_jax.core.regular_files import parse_json
from starflow_jax.core.storage.manifest import PART, File, Manifest, from_rows, to_rows
from starflow_jax.core.storage.store import Store

_MAX_BYTES = 2**30
_CHECKPOINTS = "checkpoints/"  # the folder of a run that several processes write


@dataclasses.dataclass(frozen=True)
class Part:
    """The files that one process has written in a session.

    Attributes:
      session: of the processes (`Manifest`).
      files: by name; steps: of checkpoints of which this process has written all of its files, in increasing order.
    """

    session: str
    files: dict[str, File] = dataclasses.field(default_factory=dict)
    steps: tuple[int, ...] = ()

    def to_json(self) -> bytes:
        """The content of the object."""
        content = {"session": self.session, "files": to_rows(self.files), "steps": self.steps}
        return json.dumps(content).encode()


def part_name(process: int) -> str:
    """The name of the object of a process."""
    return f"{PART}{process}.json"


def read_part(store: Store, process: int) -> Part | None:
    """What a process has written; None where there is no such object, or none that can be read as one.

    Raises:
      StoreError: the store cannot be read.
    """
    try:
        values = parse_json(store.read(part_name(process), 0, _MAX_BYTES))
        steps = tuple(int(step) for step in values["steps"])
        return Part(str(values["session"]), from_rows(values["files"]), steps)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_part(store: Store, process: int, part: Part) -> None:
    """Writes the object of a process.

    Raises:
      StoreError: the store cannot be written.
    """
    store.write(part_name(process), part.to_json())


def remove_unlisted(
    store: Store, listed: Collection[str], removable: Callable[[str], bool] = lambda name: True
) -> None:
    """Removes objects of checkpoints that no list names. Only the owner of the folder may call this.

    Args:
      listed: names of files; removable: whether the object of a name may go.

    Raises:
      StoreError: the store cannot be read or written.
    """
    for name in store.list():
        if name.startswith(_CHECKPOINTS) and name not in listed and removable(name):
            store.remove(name)


def remove_parts(store: Store, manifest: Manifest) -> None:
    """Removes the objects of all processes of a session that has ended, and files of checkpoints that no list names.

    Only the owner of the folder may call this.

    Raises:
      StoreError: the store cannot be read or written.
    """
    if manifest.processes == 1:
        return
    remove_unlisted(store, manifest.files)
    for process in range(1, manifest.processes):
        store.remove(part_name(process))
