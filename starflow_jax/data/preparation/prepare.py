"""Writes data as sharded ArrayRecord with a manifest, continuing where an interrupted request stopped.

A folder that is being written holds the plan of its request. Every shard is renamed into place when it is whole, and
the manifest is written after all of them: a folder without one is not read.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import read_json
from starflow_jax.core.request_errors import require
from starflow_jax.data.decoding.bad_examples import MAX_NAMED
from starflow_jax.data.preparation.opened_splits import open_splits
from starflow_jax.data.preparation.prepare_request import PrepareRequest
from starflow_jax.data.preparation.shard_writing import ShardFacts, ShardJob, read_facts, write_shards
from starflow_jax.data.sources.image_collection import ImageCollection
from starflow_jax.data.sources.image_manifest import (
    FORMAT,
    MANIFEST_FILE,
    PLAN_FILE,
    Manifest,
    StoredShard,
    StoredSplit,
    read_manifest,
)

_POLL_SECONDS = 0.2
_LEFT_OVER = re.compile(r"\.[A-Za-z0-9_]+-\d+-of-\d+(\.facts)?\.[0-9a-f]{32}\.(array_record|sizes|json)")


class Preparation(NamedTuple):
    """Data that are opened, and the shards to write.

    Attributes:
      request: the request; splits: the images by split; jobs: all shards; plan: what the request asks for.
    """

    request: PrepareRequest
    splits: Mapping[str, ImageCollection]
    jobs: tuple[ShardJob, ...]
    plan: Mapping[str, Any]

    @property
    def total(self) -> int:
        """Number of examples to read, unreadable ones included."""
        return sum(map(len, self.splits.values()))


def open_preparation(request: PrepareRequest) -> Preparation:
    """Opens the data of a request; nothing is written.

    Raises:
      ValueError: the data are missing or cannot be read; the folder holds something else.
    """
    splits = open_splits(request)
    jobs = []
    for name, collection in splits.items():
        count, shards = len(collection), request.num_shards(len(collection))
        ends = [number * count // shards for number in range(shards + 1)]
        stems = [f"{name}-{number:05d}-of-{shards:05d}" for number in range(shards)]
        jobs += [ShardJob(name, *job) for job in zip(stems, ends[:-1], ends[1:], strict=True)]
    plan = {
        "format": FORMAT,
        "kind": request.kind,
        "source": Path(request.source).name or request.source,
        "features": dict(request.features),
        "caption_lines": request.caption_lines,
        "tar_keys": request.tar_keys,
        "decode": request.decode,
        "splits": {name: {"examples": len(one), "signature": one.signature()} for name, one in splits.items()},
        "shards": {name: request.num_shards(len(one)) for name, one in splits.items()},
    }
    preparation = Preparation(request, splits, tuple(jobs), json.loads(json.dumps(plan)))
    _check_folder(preparation)
    return preparation


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a finished or an unfinished preparation."""
    return (folder / MANIFEST_FILE).is_file() or (folder / PLAN_FILE).is_file()


def prepare(preparation: Preparation, progress: Callable[[int], None] | None = None) -> Manifest:
    """Writes the shards that are not written yet, and then the manifest.

    Args:
      progress: called with numbers of further examples that were read, those of earlier attempts included.

    Raises:
      ValueError: a split has no readable example, or most of its examples cannot be read.
      OSError: a file cannot be written.
    """
    folder = preparation.request.out
    done = progress or (lambda count: None)
    if (folder / MANIFEST_FILE).is_file():
        _remove_traces(preparation)
        done(preparation.total)
        return read_manifest(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN_FILE).is_file():
        write_text(folder / PLAN_FILE, json.dumps(preparation.plan, indent=2) + "\n")
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            path.unlink()
    missing = []
    for job in preparation.jobs:
        if read_facts(folder, job) is None:
            (folder / job.facts_file).unlink(missing_ok=True)
            missing.append(job)
        else:
            done(job.last - job.first)
    if preparation.request.workers:
        _write_by_processes(preparation, missing, done)
    else:
        for name, collection in preparation.splits.items():
            jobs = [job for job in missing if job.split == name]
            write_shards(collection, folder, jobs, preparation.request.decode, done)
    manifest = _manifest(preparation)
    write_text(folder / MANIFEST_FILE, json.dumps(manifest.to_values(), indent=2) + "\n")
    _remove_traces(preparation)
    return manifest


def _check_folder(preparation: Preparation) -> None:
    """Refuses a folder that holds something else than a part of what is asked for."""
    folder = preparation.request.out
    require(not folder.exists() or folder.is_dir(), "{out} must name a folder, got the file {0}", folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    complete = (folder / MANIFEST_FILE).is_file()
    require(
        is_begun(folder),
        "{out} must be a new or empty folder, or one that the same command began, got {0}, which contains other files",
        folder,
    )
    plan = read_manifest(folder).plan if complete else read_json(folder / PLAN_FILE)
    different = [
        name for name, value in preparation.plan.items() if not isinstance(plan, dict) or plan.get(name) != value
    ]
    require(
        not different,
        "{out} must be a new folder, or one that the same command began on the same data, got {0}, which was begun "
        "with other {1}",
        folder,
        ", ".join(different),
    )


def _write_by_processes(preparation: Preparation, jobs: Sequence[ShardJob], done: Callable[[int], None]) -> None:
    """Writes shards by several processes, each of which receives the images of a split once."""
    request = preparation.request
    parts = [
        (collection, part)
        for name, collection in preparation.splits.items()
        for worker in range(request.workers)
        if (part := [job for job in jobs if job.split == name][worker :: request.workers])
    ]
    queues = [collections.deque(part) for _, part in parts]
    with ProcessPoolExecutor(request.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            writing = {pool.submit(write_shards, images, request.out, part, request.decode) for images, part in parts}
            while writing:
                finished, writing = wait(writing, _POLL_SECONDS, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                for queue in queues:  # every process writes its shards in order
                    while queue and (request.out / queue[0].facts_file).is_file():
                        job = queue.popleft()
                        done(job.last - job.first)
        except BrokenProcessPool as error:
            raise ValueError(
                "a process that wrote shards was killed, for example for want of memory: the same command continues"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _manifest(preparation: Preparation) -> Manifest:
    request, splits = preparation.request, preparation.splits
    facts = {job: read_facts(request.out, job) for job in preparation.jobs}
    written = {job: fact for job, fact in facts.items() if fact is not None}
    lost = [job.record_file for job in facts if job not in written]
    check(not lost, f"data folder {request.out} must be left alone while it is written, but {lost[:1]} is missing")
    stored = {
        name: _split(request.out, name, {job: fact for job, fact in written.items() if job.split == name})
        for name in splits
    }
    classes: tuple[str, ...] = next(
        (tuple(names) for one in splits.values() if (names := getattr(one, "classes", ()))), ()
    )
    largest = max(fact.largest_label for fact in written.values())
    num_classes = max(largest + 1, *(one.num_classes for one in splits.values()))
    notes = [note for one in splits.values() for note in _notes(one)]
    return Manifest(
        str(preparation.plan["source"]),
        request.kind,
        dict(request.features),
        num_classes,
        classes if len(classes) == num_classes else (),
        stored,
        tuple(dict.fromkeys(notes)),
        preparation.plan,
    )


def _split(folder: Path, name: str, written: Mapping[ShardJob, ShardFacts]) -> StoredSplit:
    captions: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    names: dict[str, str] = {}
    for fact in written.values():
        captions.update(fact.captions)
        reasons.update(fact.reasons)
        names.update(fact.names)
    count = sum(fact.count for fact in written.values())
    first = "".join(f", such as {name}: {reason}" for name, reason in list(names.items())[:1])
    check(count > 0, f"split {name} of data folder {folder} must have an image that can be read, got none{first}")
    total = sum(int(fact.digest, 16) for fact in written.values()) % 2**256
    return StoredSplit(
        count,
        sum(fact.skipped for fact in written.values()),
        f"{total:064x}",
        dict(captions),
        dict(reasons.most_common()),
        dict(list(names.items())[:MAX_NAMED]),
        tuple(StoredShard(job.record_file, fact.count, fact.bytes) for job, fact in written.items()),
    )


def _notes(collection: ImageCollection) -> list[str]:
    """What the data contain and is not read."""
    about_captions: Callable[[], list[str]] = getattr(collection, "caption_notes", list)
    skipped = [f"{name} cannot be read: {reason}" for name, reason in collection.skipped.reasons.items()]
    return [*getattr(collection, "notes", ()), *about_captions(), *skipped]


def _remove_traces(preparation: Preparation) -> None:
    """Removes the files that only an unfinished folder needs."""
    for job in preparation.jobs:
        (preparation.request.out / job.facts_file).unlink(missing_ok=True)
    (preparation.request.out / PLAN_FILE).unlink(missing_ok=True)
