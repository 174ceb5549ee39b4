"""Compiled programs kept for later commands: JAX's persistent compilation cache in a folder of the user.

JAX reads and writes the entries. This module chooses the folder before JAX is imported, and keeps it small and intact:
JAX writes an entry in place, so that a process that is killed may leave a part of one, which later processes could
neither read nor replace. Entries written since the last command are therefore checked, and removed if they are damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path("starflow_jax", "compiled")  # inside of the user's folder of caches
LARGEST_BYTES = 2**30  # of all entries; the ones unused for the longest time are removed
_KEPT_SHARE = 0.8  # of LARGEST_BYTES, after a removal
_BEING_WRITTEN_SECONDS = 60.0  # younger entries may be incomplete because another process is still writing them
_TIDIED = "tidied"  # its modification time: entries before it are known to be intact
_DIRECTORY, _ENABLED, _MIN_SECONDS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """The settings of JAX's compilation cache for one command.

    Attributes:
      variables: environment variables that JAX reads when it is imported, without those that the user has set.
      problem: a sentence on why programs are not kept, None if they are, or if the user decided about it.
    """

    variables: Mapping[str, str]
    problem: str | None = None


def keep_compiled_programs(keep: bool) -> str | None:
    """Applies `cache_settings` to this process, which has not imported JAX yet; returns its `problem`."""
    settings = cache_settings(os.environ, keep)
    os.environ.update(settings.variables)
    # A damaged entry costs one compilation, and the next command removes it.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
    return settings.problem


def cache_settings(environment: Mapping[str, str], keep: bool) -> CacheSettings:
    """The settings that follow from the environment and from `--no-compilation-cache`, which is `keep` false.

    A folder that the user has set for JAX (JAX_COMPILATION_CACHE_DIR), and JAX_ENABLE_COMPILATION_CACHE=false, stay in
    effect. Otherwise the folder is created, checked and tidied.
    """
    if not keep:
        return CacheSettings({_ENABLED: "false"})
    if _DIRECTORY in environment or environment.get(_ENABLED, "true").lower() in ("0", "f", "false", "n", "no", "off"):
        return CacheSettings({})
    try:
        caches = folder_of_caches(environment)
        folder = caches / FOLDER / processor_name()
        _claim(caches, folder)
        tidy(caches / FOLDER)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        return CacheSettings({}, f"compiled programs are not kept for later commands: {reason}")
    # Reading an entry takes milliseconds, and compiling even the smallest program more: all are kept.
    variables = {_DIRECTORY: str(folder), _MIN_SECONDS: "0"}
    return CacheSettings({name: value for name, value in variables.items() if name not in environment})


def folder_of_caches(environment: Mapping[str, str]) -> Path:
    """The user's folder of caches, as the XDG base directory specification defines it."""
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def processor_name() -> str:
    """A name of this machine's instruction set.

    Programs for CPUs contain the instructions of the machine that compiled them. Machines that share a home folder
    share the programs only if this name is the same.
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                break  # the other cores
            fields[name.strip()] = value.strip()
    names = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    described = "\n".join([platform.processor(), *(fields.get(name, "") for name in names)])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def _claim(caches: Path, folder: Path) -> None:
    """Creates `folder` for the user alone: whoever writes to it decides what later commands execute.

    Raises:
      OSError: it cannot be created or written, or another user can write to it.
    """
    caches.mkdir(parents=True, exist_ok=True)
    for path in reversed([folder, *folder.parents[: len(folder.relative_to(caches).parts) - 1]]):
        path.mkdir(mode=0o700, exist_ok=True)
        state = path.stat()
        if state.st_uid != os.getuid() or state.st_mode & 0o022:
            raise OSError(f"{path} can be written by other users")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(folder))


def tidy(root: Path, largest: int = LARGEST_BYTES) -> None:
    """Removes damaged entries, and the ones unused for the longest time where all together exceed `largest` bytes.

    Other processes may use, add and remove entries at the same time.

    Raises:
      OSError: the folder cannot be written.
    """
    stamp, until = root / _TIDIED, time.time() - _BEING_WRITTEN_SECONDS
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    kept: list[tuple[float, int, Path]] = []
    for path, state in _entries(root):
        if since <= state.st_mtime < until and _is_damaged(path):
            path.unlink(missing_ok=True)
        else:
            kept.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    total = sum(size for _, size, _ in kept)
    if total > largest:
        for _, size, path in sorted(kept):
            if total <= _KEPT_SHARE * largest:
                break
            path.unlink(missing_ok=True)
            total -= size
    stamp.touch()
    os.utime(stamp, (until, until))


def _entries(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if name != _TIDIED:
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    yield path, path.stat()


def _is_damaged(path: Path) -> bool:
    """Whether an entry is not whole, that is, cannot be decompressed."""
    if not path.name.endswith("-cache"):  # a file of XLA's autotuning
        return False
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return _is_damaged_zstandard(data)
    try:
        zlib.decompress(data)
    except zlib.error:
        return True
    return False


def _is_damaged_zstandard(data: bytes) -> bool:
    try:
        import zstandard
    except ImportError:  # nor can JAX read it in this environment
        return False
    try:
        zstandard.decompress(data)
    except zstandard.ZstdError:
        return True
    return False
