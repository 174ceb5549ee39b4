"""Bounds on what a browser may send, around an ASGI application."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_JSON = 2**20  # bytes of a request that is no upload
_FORM = 2**16  # bytes of a form around its file
_MOST_DEPTH = 40  # of nested values in JSON
_REMOTE = re.compile(r"\s*[a-z][a-z0-9+.-]*:", re.IGNORECASE)
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
    """Refuses requests that are too large, for another host, or that name a file elsewhere; adds headers to answers.

    Args:
      app: the application.
      most_upload: bytes of an uploaded file.
      hosts: names by which the server may be called, without ports; None for any. A page elsewhere whose name leads to
        this machine is thereby refused (DNS rebinding).
    """

    def __init__(self, app: Application, most_upload: int, hosts: tuple[str, ...] | None = None):
        self._app, self._most_upload, self._hosts = app, most_upload, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        if self._hosts is not None and host_name(headers.get(b"host", b"")) not in self._hosts:
            await _refuse(answer, 403, "this studio is reached by the address that it printed alone")
            return
        if re.search(r"/(file|proxy)=\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE):
            await _refuse(answer, 403, "files elsewhere are not fetched")
            return
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, answer)
            return
        upload = path.rstrip("/").endswith("/upload")
        limit = self._most_upload + _FORM if upload else MOST_JSON
        length = headers.get(b"content-length", b"")
        if not (length.isdigit() and len(length) < 16):
            await _refuse(answer, 411, "a request must state its length")
            return
        if int(length) > limit:
            await _refuse(answer, 413, f"a request may have at most {limit} bytes, got {int(length)}")
            return
        if upload:
            await self._app(scope, receive, answer)
            return
        body = await _body(receive, limit)
        if body is None:
            await _refuse(answer, 413, f"a request may have at most {limit} bytes, got more")
            return
        if names_remote_file(body):
            await _refuse(answer, 403, "files elsewhere are not fetched")
            return
        await self._app(scope, _replayed(body, receive), answer)


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
