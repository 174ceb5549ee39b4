"""Local copies of what is read from stores: verified, used again while they match, and bounded in size.

A copy has the modification time of the object, so that what depends on the times of files is the same on every
machine. It is up to date where size and time agree, as for rsync. The copies that were used longest ago are removed
when others need their place; those that a process has opened stay until it ends.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from starflow_jax.core.storage.addresses import Address, address_text, is_address, parts_of_scale
from starflow_jax.core.storage.hub_addresses import HubAddress, is_hub_address
from starflow_jax.core.storage.hub_copies import fetch_hub
from starflow_jax.core.storage.local_moves import locked, move_over, shared_until_exit
from starflow_jax.core.storage.manifest import File, Manifest, folder_files, read_pending
from starflow_jax.core.storage.places import COPIES, LIMIT_VARIABLE, OUTLINES, copies_limit, local_place, storage_folder
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import Store, open_store

_THREADS = 8
_ATTEMPTS = 4  # to copy a folder that somebody publishes meanwhile
_SMALL, _MOST_BESIDE = 2**24, 100  # bytes, and number of objects beside those of a folder
_USED = ".used"  # folder of one file for each copy, whose modification time is that of its last use
_STEP = re.compile(r"(?!(?:.*/)?inverse/)(?:^|.*/)checkpoints/(0|[1-9]\d{0,18})/")  # of the flow, not of its inverse

Wanted = Callable[[str], bool]


def everything(name: str) -> bool:
    """Wants every file."""
    return True


def without_optimizer(name: str) -> bool:
    """Wants the files of runs that are read for their parameters, and not those of the state of the optimizer."""
    return re.search(r"(^|/)checkpoints/[^/]+/opt_state/", name) is None


def one_step(names: list[str], step: int | None) -> list[str]:
    """The files of a run that reading its parameters at one step needs; the newest step for None or a missing one."""
    steps = {int(match[1]) for name in names if (match := _STEP.match(name))}
    chosen = step if step in steps else max(steps, default=None)

    def needed(name: str) -> bool:
        match = _STEP.match(name)
        return match is None or int(match[1]) == chosen

    return [name for name in names if without_optimizer(name) and needed(name)]


def local_path(path: Path | str, wanted: Wanted = everything) -> Path:
    """A path as it is; for an address, the path of a local copy, which is made or brought up to date.

    Args:
      path: a path, or an address, which may end in a pattern ("gs://b/train-*.tar") or in the temporal scale of an
        autoencoder ("gs://b/vae.pth:0.6"), as the path of the copy does then. Of a model on the Hugging Face Hub,
        hf://ORG/NAME[@REVISION][/FILE], the copy is in the cache of huggingface_hub.
      wanted: of a folder, whether the file of a name below it is needed; others may be missing in the copy.

    Returns:
      The path; where the store has nothing at the address, a path where nothing is.

    Raises:
      ValueError: the address is not one, its library is missing, or the copy would be larger than the limit.
      StoreError: the store cannot be read.
    """
    if not is_address(path):
        return Path(path)
    text = address_text(path)
    plain, scale = parts_of_scale(text)
    if scale:
        return Path(f"{local_path(plain, wanted)}{scale}")
    if is_hub_address(text):
        return fetch_hub(HubAddress.parse(text), lambda names: filter(wanted, names)).path
    address, pattern = parts_of_pattern(text)
    if pattern:
        return fetch_copy(open_store(address), lambda name: fnmatch.fnmatchcase(name, pattern)) / pattern
    return fetch_copy(open_store(address), wanted)


def parts_of_pattern(text: str) -> tuple[Address, str]:
    """The folder of an address that ends in a pattern, and the pattern; "" for an address without `*` and `?`.

    Raises:
      ValueError: the text is no address.
    """
    parts = text.split("/")
    first = next((index for index, part in enumerate(parts) if "*" in part or "?" in part), len(parts))
    return Address.parse("/".join(parts[:first])), "/".join(parts[first:])


def fetch_copy(store: Store, wanted: Wanted = everything, *, limit: int | None = None) -> Path:
    """Makes or updates the copy of an object, or of the wanted files of a folder; see `local_path`."""
    return fetch_selected(store, lambda manifest: [name for name in manifest.files if wanted(name)], limit=limit)


def fetch_selected(store: Store, select: Callable[[Manifest], Iterable[str]], *, limit: int | None = None) -> Path:
    """`fetch_copy` of the files that `select` names among those of the folder."""
    place = local_place(store.address, COPIES)
    facts = store.facts() if store.address.key else None
    limit = copies_limit() if limit is None else limit

    def update(manifest: Manifest) -> None:
        _remove_others(place, manifest)
        files = {name: manifest.files[name] for name in select(manifest)}
        missing = {name: file for name, file in files.items() if not _matches(place / name, file)}
        _make_room(place, store, missing, limit)
        fetch_files(store, place, missing)

    with _using(place):
        if facts is None:
            _with_current_files(store, update)
            return place
        file = File(facts.size, None, facts.modified_ns)
        if not _matches(place, file):
            _make_room(place, store, {place.name: file}, limit)
            fetch_files(store.parent(), place.parent, {place.name: file})
    return place


def fetch_outline(store: Store, wanted: Wanted, beside: Wanted | None = None) -> Path:
    """A folder with the wanted files of another, and empty space of the same sizes in place of all others.

    Args:
      beside: chooses among small objects that the list of the folder does not name, since other commands than its owner
        have written them.
    """
    place = local_place(store.address, OUTLINES)

    def update(manifest: Manifest) -> None:
        shutil.rmtree(place, ignore_errors=True)
        fetch_files(store, place, {name: file for name, file in manifest.files.items() if wanted(name)})
        for name, file in manifest.files.items():
            if not wanted(name):
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as empty:
                    empty.truncate(file.size)
        if beside is not None:
            pending = read_pending(store).added
            objects = {
                name: File(one.size, None, one.modified_ns)
                for name, one in store.list().items()
                if beside(name) and name not in manifest.files and name not in pending and one.size <= _SMALL
            }
            fetch_files(store, place, dict(list(objects.items())[:_MOST_BESIDE]), damaged=lambda sentence: None)

    _with_current_files(store, update)
    return place


def _with_current_files(store: Store, action: Callable[[Manifest], None]) -> None:
    """Calls `action` with the files of a folder, and again, with a new list, if they have changed meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            return action(folder_files(store))
        except StoreError as error:
            if error.transient or attempt == _ATTEMPTS - 1:  # calls were repeated already
                raise
            store.retries.sleep(0.5 * 2**attempt)


def fetch_files(store: Store, root: Path, files: dict[str, File], damaged: Callable[[str], None] | None = None) -> None:
    """Copies objects into a folder, each under a temporary name that is then renamed, with their times.

    A file that an incomplete publication is replacing, or was replacing when it was interrupted, is taken as it is.

    Args:
      damaged: receives a sentence for each object that is missing or damaged, which is left out or taken as it is.

    Raises:
      StoreError: the store cannot be read; without `damaged`, also an object that is missing or damaged.
    """

    def problem(sentence: str) -> None:
        if damaged is None:
            raise StoreError(sentence)
        damaged(sentence)

    replaced = functools.cache(lambda: read_pending(store).replaced)

    def fetch(name: str) -> None:
        file, target = files[name], root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            size, checksum = store.fetch(name, temporary, file.size)
            modified_ns = file.modified_ns
            if size != file.size or file.checksum not in (None, checksum):
                if name not in replaced():
                    problem(f"{store.address / name} is damaged: it does not match its size and checksum")
                modified_ns = time.time_ns()  # other than listed
            os.utime(temporary, ns=(modified_ns, modified_ns))
            move_over(temporary, target)
        except FileNotFoundError:
            problem(f"{store.address / name} is missing, and the list of its folder names it")
        finally:
            temporary.unlink(missing_ok=True)

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(fetch, files):
            pass


def _matches(path: Path, file: File) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.modified_ns)


def _remove_others(root: Path, manifest: Manifest) -> None:
    """Removes the files of a copy that the store has no more, or others than these."""
    for path in list(root.rglob("*")) if root.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            continue
        file = manifest.files.get(path.relative_to(root).as_posix())
        if file is None or not _matches(path, file):
            path.unlink(missing_ok=True)


def _using(place: Path) -> AbstractContextManager[None]:
    """Marks a copy as used now, and by this process until it ends."""
    stamp = _stamp(place)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(str(place), encoding="utf-8")
    return shared_until_exit(stamp)


def _stamp(place: Path) -> Path:
    return storage_folder() / COPIES / _USED / hashlib.sha256(str(place).encode()).hexdigest()[:32]


def _make_room(place: Path, store: Store, missing: dict[str, File], limit: int) -> None:
    """Removes the copies that were used longest ago until the missing files fit.

    Raises:
      ValueError: they do not fit.
    """
    size = sum(file.size for file in missing.values())
    if not size:
        return
    root = storage_folder() / COPIES
    taken = sum(map(_size, root.glob("[!.]*")))
    for stamp, other in _copies_by_use(root):
        if taken + size <= limit:
            return
        if other == place or place.is_relative_to(other) or other.is_relative_to(place):
            continue
        with locked(stamp) as free:
            if free:
                taken -= _size(other)
                if other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    other.unlink(missing_ok=True)
                stamp.unlink(missing_ok=True)
    if taken + size > limit:
        raise ValueError(
            f"{store.address} needs a local copy of {size / 1e9:.3g} GB, and with the {taken / 1e9:.3g} GB of copies "
            f"in use the limit is {limit / 1e9:.3g} GB: {LIMIT_VARIABLE} sets it"
        )


def _copies_by_use(root: Path) -> Iterator[tuple[Path, Path]]:
    """The stamps and the places of all copies, the one used longest ago first."""
    found = [path for path in (root / _USED).glob("*") if not path.suffix]
    for stamp in sorted(found, key=lambda stamp: stamp.stat().st_mtime_ns):
        place = Path(stamp.read_text(encoding="utf-8"))
        if place.is_relative_to(root):
            yield stamp, place


def _size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; 0 where there is nothing."""
    files = [path, *path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())
