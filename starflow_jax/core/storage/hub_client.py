"""Calls to the Hugging Face Hub through its own client, whose errors become one sentence without a token.

The client reads HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HOME, and the login of `hf auth login`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from starflow_jax.core.storage.retries import Retries, StoreError

T = TypeVar("T")

# The packages whose errors mean that the Hub was not reached; the client changed its HTTP library twice.
_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "hf_xet", "huggingface_hub")
_BUSY = (408, 429)
_LONGEST = 200  # characters of a reason


def hub_library() -> ModuleType:
    """The package `huggingface_hub`.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError("addresses hf:// need the package huggingface_hub: pip install 'starflow-jax[hub]'") from error
    return huggingface_hub


def hub_api() -> Any:
    """The client, an `HfApi`; ValueError where its package is not installed."""
    from starflow_jax import __version__

    return hub_library().HfApi(library_name="starflow_jax", library_version=__version__)


def is_offline() -> bool:
    """Whether the client makes no calls (HF_HUB_OFFLINE)."""
    return bool(hub_library().constants.HF_HUB_OFFLINE)


def called(name: object, action: Callable[[], T], retries: Retries | None = None) -> T:
    """The result of a call to the Hub, repeated while the Hub is not reached.

    Args:
      name: the address, for messages; action: makes the call.

    Raises:
      ValueError: the Hub has answered that there is no such model, revision or file, or that it refuses the token.
      StoreError: the Hub did not answer.
    """
    errors = hub_library().errors

    def translated() -> T:
        try:
            return action()
        except Exception as error:
            raise _translated(name, error, errors) from None  # the error holds the request, with the token

    return (retries or Retries(attempts=3))(translated)


def _translated(name: object, error: Exception, errors: Any) -> Exception:
    """The error to raise for an error of the client."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if is_offline():
            return Offline(f"{name} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE allows no other source")
        return StoreError(f"{name} cannot be read: the Hub was not reached", transient=True)
    if isinstance(error, errors.GatedRepoError):
        return ValueError(f"{name} is gated: its page on the Hub says how to get access, which goes with a token")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"{name} does not exist on the Hub, or it is private and the token (HF_TOKEN, hf auth login) is of no use"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{name} has a revision that the repository does not have")
    if isinstance(error, errors.EntryNotFoundError):
        return ValueError(f"{name} names a file that the repository does not have")
    if status in (401, 403):
        return ValueError(f"{name} is refused by the Hub: the token (HF_TOKEN, hf auth login) is not valid for it")
    if isinstance(status, int) and 400 <= status < 500 and status not in _BUSY:
        return ValueError(f"{name} is refused by the Hub: {without_token(str(error))}")
    if isinstance(error, RuntimeError):  # of an upload, around the error of a thread or of the library in Rust
        if error.__cause__ is not None and isinstance(error.__cause__, Exception):
            return _translated(name, error.__cause__, errors)
        return StoreError(f"{name} cannot be reached: {without_token(str(error))}", transient=True)
    package = type(error).__module__.partition(".")[0]
    if package in _NETWORK or isinstance(error, ConnectionError | TimeoutError):
        kind = f"status {status}" if status is not None else type(error).__name__
        return StoreError(f"{name} cannot be reached: {kind}", transient=True)
    if isinstance(error, ValueError):  # of the client, about what it was given, which may be the token
        return ValueError(f"{name} cannot be read or written: {without_token(str(error))}")
    return error


class Offline(ValueError):
    """A model is not in the cache, and calls are not allowed."""


def without_token(text: str) -> str:
    """The first line of a message that says something, bounded, without queries of addresses and without tokens."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = re.sub(r"\?\S+", "?...", lines[0] if lines else "")
    for token in (os.environ.get("HF_TOKEN", "").strip(), hub_library().get_token() or ""):
        if token:
            line = line.replace(token, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "***", line)[:_LONGEST]
