"""Local copies of models on the Hugging Face Hub, in the cache of `huggingface_hub`, at one commit.

What a revision was at the last call, and which files it had, is remembered: without a network the same copy is used.
"""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from starflow_jax.core.regular_files import read_json
from starflow_jax.core.storage.hub_addresses import COMMIT, HubAddress
from starflow_jax.core.storage.hub_client import Offline, called, hub_api, hub_library, is_offline
from starflow_jax.core.storage.local_moves import move_over
from starflow_jax.core.storage.places import HUB, storage_folder

# Files that are read without executing anything by whoever reads them; Orbax's files have names of their own.
SAFE_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".md", ".npz")
# Read by this project without executing anything, but not by everybody: only where the address names the file.
NAMED_SUFFIXES = (*SAFE_SUFFIXES, ".bin", ".pth", ".pt", ".yaml", ".yml")
_CHECKPOINT = re.compile(r"(^|/)checkpoints/[^/]+/")
_THREADS = 8
_MOST_FILES = 100_000

Select = Callable[[list[str]], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class HubCopy:
    """A local copy.

    Attributes:
      address: with the commit as its revision.
      path: of the file or folder.
    """

    address: HubAddress
    path: Path


def is_safe(name: str) -> bool:
    """Whether a file is copied although no address names it."""
    suffix = PurePosixPath(name).suffix.lower()
    if _CHECKPOINT.search(name):
        return suffix in ("", ".ocdbt", *SAFE_SUFFIXES)
    return suffix in SAFE_SUFFIXES


def fetch_hub(address: HubAddress, select: Select | None = None) -> HubCopy:
    """Copies a model, or a file or folder of it.

    Args:
      select: chooses among the names of the files below the address; None for all. Files that are not safe to hand on
        are left out, unless the address names one.

    Raises:
      ValueError: there is no such model, revision or file, a file may not be copied, or the package is missing.
      StoreError: the Hub is not reached.
    """
    commit, names = _files(address)
    pinned = address.pinned(commit)
    if address.file in names:
        if PurePosixPath(address.file).suffix.lower() not in NAMED_SUFFIXES and not is_safe(address.file):
            raise ValueError(f"{address} must end in one of {', '.join(NAMED_SUFFIXES)}")
        wanted = [address.file]
    else:
        prefix = f"{address.file}/" if address.file else ""
        below = [name for name in names if name.startswith(prefix) and is_safe(name)]
        if not below:
            what = "names nothing in the repository" if address.file else "contains nothing"
            raise ValueError(f"{address} {what} that can be read ({', '.join(SAFE_SUFFIXES)} or a checkpoint)")
        wanted = below if select is None else [prefix + name for name in select([n[len(prefix) :] for n in below])]
    if not wanted:
        raise ValueError(f"{address} contains no file that is needed")
    snapshot = _downloaded(pinned, wanted)
    return HubCopy(pinned, snapshot / address.file if address.file else snapshot)


def _downloaded(address: HubAddress, names: list[str]) -> Path:
    """The folder of the commit in the cache, with the files."""
    library = hub_library()

    def one(name: str) -> Path:
        named = dataclasses.replace(address, file=name)
        # With a commit as the revision, a file of the cache is returned without a call.
        path = called(named, lambda: library.hf_hub_download(address.repo, name, revision=address.revision))
        return Path(path).parents[name.count("/")]

    first = one(names[0])
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(one, names[1:]):
            pass
    return first


def _files(address: HubAddress) -> tuple[str, list[str]]:
    """The commit of an address, and the names of the files of the repository at it."""
    record = _record(address)
    known = _read_record(record)
    fixed = address.revision is not None and COMMIT.fullmatch(address.revision) is not None
    if known is not None and (fixed or is_offline()):
        return known
    if is_offline():
        return _cached(address)
    repository = dataclasses.replace(address, file="")
    information = called(repository, lambda: hub_api().model_info(address.repo, revision=address.revision))
    names = sorted(sibling.rfilename for sibling in information.siblings or ())
    commit = str(information.sha)
    if not COMMIT.fullmatch(commit) or len(names) > _MOST_FILES or not all(map(_is_plain, names)):
        raise ValueError(f"{repository} has names of files, or a commit, that cannot be read")
    for path in {record, _record(address.pinned(commit))}:
        _write_record(path, commit, names)
    return commit, names


def _is_plain(name: object) -> bool:
    """Whether a name stays inside of a folder."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or ":" in name:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def _cached(address: HubAddress) -> tuple[str, list[str]]:
    """The commit and the files in the cache, which another program may have filled."""
    library = hub_library()

    def found() -> str:
        return str(library.snapshot_download(address.repo, revision=address.revision, local_files_only=True))

    try:
        folder = Path(found())
    except Exception as error:
        # Of a part of a repository, the path comes with the error.
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            raise Offline(
                f"{address} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE allows no other source"
            ) from None
        folder = Path(partial)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return folder.name, sorted(names)


def _record(address: HubAddress) -> Path:
    revision = urllib.parse.quote(address.revision or "main", safe="")
    return storage_folder() / HUB / "revisions" / address.repo / f"{revision}.json"


def _read_record(path: Path) -> tuple[str, list[str]] | None:
    try:
        content = read_json(path)
        commit, names = content["commit"], content["files"]
    except (ValueError, TypeError, KeyError):
        return None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(names, list):
        return None
    return (commit, names) if all(map(_is_plain, names)) else None


def _write_record(path: Path, commit: str, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")  # `core.atomic_writing` imports this package
    temporary.write_text(json.dumps({"commit": commit, "files": names}), encoding="utf-8")
    move_over(temporary, path)
