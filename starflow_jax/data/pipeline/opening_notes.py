"""Sentences about what a source leaves aside, known since it was opened."""

from __future__ import annotations

from typing import Any

from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.mixture import components_of


def opening_notes(source: Source) -> list[str]:
    """What the collections behind a source do not read, and rows of metadata that name no file."""
    notes: list[str] = []
    for collection in collections_of(source):
        notes += getattr(collection, "notes", ())
        notes += getattr(collection, "caption_notes", tuple)() if _captioned(source, collection) else ()
    return list(dict.fromkeys(notes))


def collections_of(source: Source) -> list[Any]:
    """The folders, shards or records behind the components of a source, each once."""
    result: list[Any] = []
    for component in components_of(source):
        part: Any = component.source
        collection = getattr(part, "collection", None) or getattr(part, "folder", None)
        collection = part if collection is None else collection
        if not any(collection is other for other in result):
            result.append(collection)
    return result


def class_names(source: Source) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers; empty where they have none or the components differ."""
    names = {tuple(getattr(collection, "classes", ())) for collection in collections_of(source)}
    return next(iter(names)) if len(names) == 1 else ()


def printable_name(name: str) -> str:
    """The name of a file or folder in one line; bytes that are no text are written as escapes."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode("utf-8").split())


def _captioned(source: Source, collection: Any) -> bool:
    """Whether captions of the collection are read."""
    parts: list[Any] = [component.source for component in components_of(source)]
    return any(
        getattr(part, "captioner", None) is not None
        and collection in (getattr(part, "collection", None), getattr(part, "folder", None))
        for part in parts
    )
