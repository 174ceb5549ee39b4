"""Finds the tensors in nested dictionaries and lists, and lists the objects that are left aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starflow_jax.tensor_formats.pickle_values import Key, Placeholder, Refused
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, TensorFile

_DEEPEST = 32
_MAX_VISITS = 2**22
_MAX_LISTED = 2**14
_CONTAINERS = (dict, list, tuple)


def named_tensors(value: Any) -> TensorFile:
    """Collects tensors by their keys joined with dots; plain values are left out, and other objects are left aside.

    A value that contains itself is visited once on each way down.

    Raises:
      Refused: the value is an object of an unknown class; tensors are nested too deeply, or in too many ways; or two
        have one name.
    """
    if isinstance(value, Placeholder) and not value.is_plain:
        raise Refused(
            f"it contains an object of {value.name!r} in place of named tensors; save the object's state_dict() instead"
        )
    leading, left_aside = _survey(value)
    return TensorFile(_collect(value, leading), left_aside)


def _survey(root: Any) -> tuple[set[int], list[LeftAside]]:
    """The containers (by id) from which a tensor can be reached, and the placeholders; visits each container once."""
    origin: dict[int, tuple[int | None, str]] = {id(root): (None, "")}
    above: dict[int, list[int]] = {}
    waiting, leading, placeholders = [root], [], []
    for node in waiting:  # which grows
        if not isinstance(node, _CONTAINERS):
            continue
        holds_tensor = False
        for name, item in _items(node):
            if isinstance(item, LazyTensor):
                holds_tensor = True
            elif isinstance(item, _CONTAINERS):
                if not item:
                    continue
                above.setdefault(id(item), []).append(id(node))
            elif not isinstance(item, Placeholder) or item.is_plain:
                continue
            if id(item) not in origin and not isinstance(item, LazyTensor):
                origin[id(item)] = (id(node), name)
                if isinstance(item, Placeholder):
                    placeholders.append(item)
                else:
                    waiting.append(item)
        if holds_tensor:
            leading.append(id(node))
    reached = set(leading)
    while leading:
        for parent in above.get(leading.pop(), ()):
            if parent not in reached:
                reached.add(parent)
                leading.append(parent)
    return reached, [LeftAside(_path(item, origin), item.name) for item in placeholders[:_MAX_LISTED]]


def _path(item: Any, origin: dict[int, tuple[int | None, str]]) -> str:
    parts: list[str] = []
    identity: int | None = id(item)
    while identity is not None and len(parts) <= _DEEPEST:
        identity, name = origin[identity]
        parts.append(name)
    return ".".join(part for part in reversed(parts) if part)


def _collect(root: Any, leading: set[int]) -> dict[str, LazyTensor]:
    result: dict[str, LazyTensor] = {}
    visits = 0
    # Each entry has the ids of the containers above it, so that none is entered within itself.
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", root, ())]
    while waiting:
        prefix, node, inside = waiting.pop()
        if isinstance(node, LazyTensor):
            if prefix in result:
                raise Refused(f"it has two tensors of the name {prefix[:120]!r}")
            result[prefix] = node
            continue
        if id(node) not in leading or id(node) in inside:
            continue
        visits += len(node)
        if len(inside) >= _DEEPEST or visits > _MAX_VISITS:
            raise Refused("its pickled part is nested too deeply")
        join, within = f"{prefix}." if prefix else "", (*inside, id(node))
        below = [(f"{join}{name}", item, within) for name, item in _items(node) if _may_lead(item, leading)]
        waiting += reversed(below)
    return result


def _may_lead(item: Any, leading: set[int]) -> bool:
    return isinstance(item, LazyTensor) or (isinstance(item, _CONTAINERS) and id(item) in leading)


def _items(node: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """The members with their names; a key that is neither text nor a number is named by its index."""
    if not isinstance(node, dict):
        yield from ((str(index), item) for index, item in enumerate(node))
        return
    for index, (key, item) in enumerate(node.items()):
        if isinstance(item, (LazyTensor, Placeholder, *_CONTAINERS)):
            yield _name(key, index), item


def _name(key: Any, index: int) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, (int, float)):
        return str(key)
    value = key.value if isinstance(key, Key) else None
    if isinstance(value, tuple) and 0 < len(value) <= 8 and all(isinstance(part, (str, int)) for part in value):
        return f"({', '.join(str(part)[:80] for part in value)})"
    return f"[{index}]"
