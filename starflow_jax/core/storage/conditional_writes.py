"""Writing an object only if it is absent, or still of the version that was seen.

GCS compares generations (`ifGenerationMatch`) and S3 entity tags (`If-None-Match`, `If-Match`) before they write. The
memory store of fsspec, which is one process, is compared under a lock. Any other store is written and read back after
a moment, which detects most races and cannot exclude them.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

from starflow_jax.core.storage.retries import Conflict

GCS, S3, MEMORY = ("gs", "gcs"), ("s3", "s3a"), ("memory",)
_MEMORY_LOCK = threading.Lock()
_READ_BACK_SECONDS = 0.5


def has_preconditions(scheme: str) -> bool:
    """Whether the store compares versions itself."""
    return scheme in (*GCS, *S3, *MEMORY)


def version_of(entry: dict[str, Any]) -> str:
    """The version of an object, from the details that fsspec gives: its generation, entity tag or time."""
    for name in ("generation", "ETag", "etag", "LastModified", "last_modified", "updated", "created", "mtime"):
        if entry.get(name) is not None:
            value = entry[name]
            if hasattr(value, "timestamp"):
                value = value.timestamp()
            return str(value).strip('"')
    return str(entry.get("size"))


def write_if(files: Any, scheme: str, path: str, data: bytes, seen: str | None) -> None:
    """Writes an object if it is absent (`seen` None) or of the version `seen`.

    Args:
      files: the file system of fsspec; path: the object in it.

    Raises:
      Conflict: it is neither.
    """
    if scheme in GCS:
        _write_to_gcs(files, path, data, seen)
    elif scheme in S3:
        _write_to_s3(files, path, data, seen)
    elif scheme in MEMORY:
        with _MEMORY_LOCK:
            _compare(files, path, seen)
            files.pipe_file(path, data)
    else:
        _compare(files, path, seen)
        files.pipe_file(path, data)
        time.sleep(_READ_BACK_SECONDS)
        files.invalidate_cache()
        if files.cat_file(path) != data:
            raise Conflict(path)


def _compare(files: Any, path: str, seen: str | None) -> None:
    files.invalidate_cache()
    try:
        now: str | None = version_of(files.info(path))
    except FileNotFoundError:
        now = None
    if now != seen:
        raise Conflict(path)


def _write_to_gcs(files: Any, path: str, data: bytes, seen: str | None) -> None:
    bucket, key, _ = files.split_path(path)
    border = b"==%s==" % uuid.uuid4().hex.encode()
    kind = b"\r\nContent-Type: application/octet-stream\r\n\r\n"
    names = b"\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + json.dumps({"name": key}).encode()
    body = b"--" + border + names + b"\r\n--" + border + kind + data + b"\r\n--" + border + b"--"
    try:
        files.call(
            "POST",
            f"{files._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="multipart",
            ifGenerationMatch=seen or "0",
            headers={"Content-Type": f'multipart/related; boundary="{border.decode()}"'},
            data=body,
            json_out=True,
        )
    except FileExistsError as error:  # status 412
        raise Conflict(path) from error
    except Exception as error:
        code = str(getattr(error, "code", ""))
        if code == "412" or (seen is not None and (code == "404" or isinstance(error, FileNotFoundError))):
            raise Conflict(path) from error
        raise
    files.invalidate_cache(path)


def _write_to_s3(files: Any, path: str, data: bytes, seen: str | None) -> None:
    condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": f'"{seen}"'}
    try:
        files.pipe_file(path, data, **condition)
    except FileNotFoundError as error:
        if seen is None:  # there is no such bucket
            raise
        raise Conflict(path) from error
    except OSError as error:
        answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
        if isinstance(error, FileExistsError) or answer == "PreconditionFailed":
            raise Conflict(path) from error
        raise
