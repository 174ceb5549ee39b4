"""Bounds on what a browser may send, around an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_JSON = 2**20  # bytes of a request that is no upload
_FORM = 2**16  # bytes of a form around its file
_MOST_DEPTH = 40  # of nested values in JSON
_REMOTE = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # one letter is a drive
# What the pages ask for. Gradio answers much more: it records, converts and streams media, reloads and edits itself.
_PAGES = re.compile(r"/|/(config|theme\.css|favicon\.ico|manifest\.json)/?|/(assets|static|svelte)/.+")
_CALLS = re.compile(
    r"/gradio_api/((queue/join|queue/data|run/predict|cancel|reset|upload|upload_progress|startup-events|info|"
    r"theme\.css)/?|heartbeat/[^/]+|file=.+)"
)
_STORED_UPLOADS = 32  # of the largest size, that the folder of uploads may hold at once
_OLDEST = 3600.0  # seconds that an uploaded file is kept
_SILENCE = 60.0  # seconds after which an upload that sends nothing is refused
_LONGEST = 600.0  # seconds that an upload may take in all, since it holds its room from its beginning
_BLOCK = 4096  # bytes of the disk that a small file takes
# The page loads nothing from elsewhere, and is not shown inside of other pages. Gradio makes functions of templates.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class GuardedRequests:
    """Refuses requests that the pages do not make, that are too large or from elsewhere; adds headers to answers.

    Args:
      app: the application.
      most_upload: bytes of an uploaded file.
      uploads: the folder of all uploaded files, which holds 32 of the largest size at most.
      hosts: names by which the server may be called, without ports; None for any. A page elsewhere whose name leads to
        this machine is thereby refused (DNS rebinding).
    """

    def __init__(self, app: Application, most_upload: int, uploads: Path, hosts: tuple[str, ...] | None = None):
        self._app, self._most_upload, self._hosts = app, most_upload, hosts
        self._uploads, self._arriving = uploads, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            await self._answered(scope, receive, answer)
        except _Refused as refused:
            await _refuse(answer, refused.status, str(refused))

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        self._check_sender(headers)
        _check_path(path)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        upload = path.rstrip("/").endswith("/upload")
        limit = self._most_upload + _FORM if upload else MOST_JSON
        length = headers.get(b"content-length", b"")
        if not (length.isdigit() and len(length) < 16):
            raise _Refused(411, "a request must state its length")
        if int(length) > limit:
            raise _Refused(413, f"a request may have at most {limit} bytes, got {int(length)}")
        if upload:
            await self._stored(int(length), scope, receive, send)
            return
        body = await _body(receive, limit)
        if body is None:
            raise _Refused(413, f"a request may have at most {limit} bytes, got more")
        if names_remote_file(body):
            raise _Refused(403, "files elsewhere are not fetched")
        await self._app(scope, _replayed(body, receive), send)

    def _check_sender(self, headers: MutableMapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"")
        if self._hosts is not None and host_name(host) not in self._hosts:
            raise _Refused(403, "this studio is reached by the address that it printed alone")
        # Any page may send a form to any address; browsers say which page it was.
        if b"origin" in headers and not is_same_place(headers[b"origin"], host):
            raise _Refused(403, "this studio answers its own pages alone")

    async def _stored(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets an upload through if the folder of uploads has room for it."""
        self._arriving += length
        try:
            stored = await asyncio.to_thread(stored_bytes, self._uploads)
            if stored + self._arriving > _STORED_UPLOADS * self._most_upload:
                raise _Refused(507, "the studio holds as many files as it may; try again in an hour")
            await self._app(scope, _in_time(receive), send)
        finally:
            self._arriving -= length


class _Refused(Exception):
    """A request that is not answered: the status, and the reason in one sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def _check_path(path: str) -> None:
    if not (_PAGES.fullmatch(path) or _CALLS.fullmatch(path)):
        raise _Refused(404, "there is nothing here")
    _, found, file = path.partition("/file=")
    if found and _REMOTE.match(file):
        raise _Refused(403, "files elsewhere are not fetched")


def stored_bytes(folder: Path) -> int:
    """Bytes on the disk of all files in a folder, about, once those that are older than an hour are removed.

    Gradio removes those that it knows of. It makes others, of uploads that were broken off and of every request, and
    leaves their folders, which are removed when they have been empty for an hour.
    """
    total, oldest = 0, time.time() - _OLDEST
    for parent, _, names in os.walk(folder, topdown=False):
        if parent != os.fspath(folder):
            _remove_if_empty(parent, oldest)
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.lstat(path)
                if status.st_mtime < oldest:
                    os.unlink(path)
                    continue
            except OSError:  # it was removed meanwhile
                continue
            total += -(-status.st_size // _BLOCK) * _BLOCK + _BLOCK
    return total


def _remove_if_empty(folder: str, oldest: float) -> None:
    """Removes a folder in which nothing is, and in which nothing has been written or removed since `oldest`."""
    with contextlib.suppress(OSError):  # something is in it, or it was removed meanwhile
        if os.lstat(folder).st_mtime < oldest:
            os.rmdir(folder)


def is_same_place(origin: bytes, host: bytes) -> bool:
    """Whether a header `Origin` names the host and port of a header `Host`; false for an opaque origin, "null"."""
    scheme, found, place = origin.decode("latin-1").strip().lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    if not found or default is None:
        return False
    return place.removesuffix(default) == host.decode("latin-1").strip().lower().removesuffix(default)


def host_name(host: bytes) -> str:
    """The name in a header `Host`, without its port and brackets, in lower case."""
    text = host.decode("latin-1").strip().lower()
    match = re.fullmatch(r"\[([0-9a-f:.]+)\](?::\d+)?|([^:]+)(?::\d+)?", text)
    return "" if match is None else match[1] or match[2]


def names_remote_file(body: bytes) -> bool:
    """Whether a request in JSON has a file whose path is an address, which Gradio would fetch."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return False  # not JSON: the application refuses it
    waiting = [(values, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            return True
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and _REMOTE.match(path):
                return True
            waiting += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            waiting += [(one, depth + 1) for one in value]
    return False


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The body of a request; None for more bytes than its header states."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)  # the browser has gone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _in_time(receive: Receive) -> Receive:
    """A source of the messages of an upload, refused when the next part of its body or its end is late."""
    whole, end = False, time.monotonic() + _LONGEST

    async def next_one() -> MutableMapping[str, Any]:
        nonlocal whole
        if whole:  # what follows is the end of the connection
            return await receive()
        left = end - time.monotonic()
        slow = f"an upload must not take longer than {_LONGEST:.0f} s"
        if left <= 0:  # refused without waiting, which would let through whatever has always arrived already
            raise _Refused(408, slow)
        try:
            message = await asyncio.wait_for(receive(), min(_SILENCE, left))
        except TimeoutError as error:
            sentence = f"an upload must not pause for {_SILENCE:.0f} s" if left > _SILENCE else slow
            raise _Refused(408, sentence) from error
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return next_one


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A source of messages that begins with a body that was already read."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return again


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
