"""What can be wrong with an installation or its machine, found without starting a training."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from starflow_jax.core.config.checks import check_integer

_NAME = "starflow-jax"
_LITTLE_SPACE = 2**30  # bytes; a checkpoint of a small model and its temporary copy

Status = Literal["ok", "warning", "failed"]


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked; status: "warning" for what works, but badly or not everywhere; detail: one sentence.
    """

    name: str
    status: Status
    detail: str


@dataclasses.dataclass(frozen=True)
class DoctorRequest:
    """What is checked.

    Attributes:
      workdir: folder that trainings will write to; seconds: limit of the process that tries the devices.

    Raises:
      ValueError: seconds is not a positive integer.
    """

    workdir: Path = Path(".")
    seconds: int = 300

    def __post_init__(self) -> None:
        check_integer("seconds", self.seconds, minimum=1)


def check_all(request: DoctorRequest, caches: Path) -> Iterator[Check]:
    """Yields the result of every check as soon as it is known.

    Args:
      request: what is checked.
      caches: folder of the user for compiled programs.
    """
    yield check_python()
    yield check_packages()
    for name, folder in (("run folder", request.workdir), ("cache folder", caches), ("temporary folder", _temporary())):
        yield check_folder(name, folder)
    yield from check_devices(request.seconds)


def check_python() -> Check:
    """Whether this version of Python is one that the package allows."""
    allowed = SpecifierSet(metadata.metadata(_NAME)["Requires-Python"])
    version = platform.python_version()
    if allowed.contains(version):
        return Check("python", "ok", version)
    return Check("python", "failed", f"Python must be {allowed}, got {version}")


def check_packages(requirements: list[str] | None = None) -> Check:
    """Whether every package that this one needs is installed, in a version that it allows.

    Args:
      requirements: as in the metadata of a package; None for those of this one.
    """
    wrong, count = [], 0
    for text in metadata.requires(_NAME) or [] if requirements is None else requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} must be {requirement.specifier}, got {version}")
    return Check("packages", "failed" if wrong else "ok", "; ".join(wrong) or f"{count} packages, as required")


def check_folder(name: str, folder: Path) -> Check:
    """Whether files can be written to a folder, and how much space is left; of a missing one, the nearest one above."""
    existing = folder.absolute()
    while not existing.is_dir():
        if existing.exists():
            return Check(name, "failed", f"{existing} is a file")
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            file.write(b"starflow")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check(name, "failed", f"{existing} cannot be written: {error.strerror or error}")
    free = shutil.disk_usage(existing).free
    status: Status = "warning" if free < _LITTLE_SPACE else "ok"
    return Check(name, status, f"{folder} can be written; {free / 2**30:.1f} GiB free")


def check_devices(seconds: int) -> Iterator[Check]:
    """What JAX sees, and one trial of every kernel, found by a process of its own, which a broken driver can stop."""
    command = [sys.executable, "-m", "starflow_jax.diagnosis.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        yield from _checks(printed.decode(errors="replace") if isinstance(printed, bytes) else printed)
        yield Check(
            "devices", "failed", f"no answer after {seconds} s: a driver or a kernel hangs, or the time is short"
        )
        return
    yield from _checks(done.stdout)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        yield Check("devices", "failed", f"the process ended with code {done.returncode}: {last.strip()[:300]}")


def _checks(printed: str) -> Iterator[Check]:
    """The checks that the probe has printed, one JSON object a line; other lines are messages of libraries."""
    for line in printed.splitlines():
        try:
            values: Mapping[str, Any] = json.loads(line)
            yield Check(values["name"], values["status"], values["detail"])
        except (ValueError, KeyError, TypeError):
            continue


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
